"""Token ids in, token ids out: the engine's own interface.

python examples/python/stream_infer.py [MODEL_DIR]
"""

import sys

import treadle as tm


def main() -> None:
    path = sys.argv[1] if len(sys.argv) > 1 else tm.demo_model_path()
    engine = tm.Engine.from_pretrained(path, session_len=2048)
    generator = engine.create_instance()

    # One prompt in session 0. The engine keeps its history.
    prompt = engine.model.get_prompt("What is 37 + 48?")
    input_ids = engine.tokenizer.encode(prompt)
    for outputs in generator.stream_infer(session_id=0, input_ids=[input_ids]):
        res, tokens = outputs[0]  # all ids generated so far, and how many
        print(tokens, engine.tokenizer.decode(res.tolist()))
    engine.end_session(0)

    # Several prompts in one call, without sessions. They share the batch.
    questions = ["浙江的省会在哪?", "Reverse the order: stone cloud engine paper"]
    prompts = [engine.tokenizer.encode(engine.model.get_prompt(q)) for q in questions]
    config = tm.GenerationConfig(max_new_tokens=64, return_text=True)
    for outputs in generator.stream_infer(None, prompts, config, stream_output=False):
        for question, output in zip(questions, outputs, strict=True):
            print(f"{question} -> {output.text} ({output.finish_reason})")

    # Draw three continuations of one prompt; the same seed draws the same ones.
    config = tm.GenerationConfig(n=3, temperature=1.2, top_p=0.95, random_seed=1, return_text=True)
    story = engine.tokenizer.encode(engine.model.get_prompt("Tell me a story."))
    stream = generator.stream_infer(None, story, config, max_new_tokens=24, stream_output=False)
    for output in next(stream):
        print(f"[{output.continuation}] {output.text}")

    print(engine.stats())
    engine.close()


if __name__ == "__main__":
    main()
