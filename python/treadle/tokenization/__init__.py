"""The parts behind :class:`treadle.tokenizer.Tokenizer`: files, backends, pieces."""
