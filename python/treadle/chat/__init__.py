"""The parts behind :class:`treadle.chat_template.ChatTemplate`: sandbox, formats, messages."""
