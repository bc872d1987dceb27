"""Two turns with the bundled demo model, streamed; the second sends only what is new.

python examples/python/conversation.py
"""

import treadle
from treadle.conversation import Conversation


def main() -> None:
    with treadle.Engine.from_pretrained(treadle.demo_model_path()) as engine:
        print(f"{engine.info.architecture}, {engine.info.num_parameters / 1e6:.1f} M parameters\n")
        conversation = Conversation(engine)
        for question in ("浙江的省会在哪?", "这有什么好吃的"):
            print(f"> {question}")
            for output in conversation.ask(question):
                print(output.new_text, end="", flush=True)
            usage = output.usage
            print(
                f"\n  ({usage.prompt_tokens} tokens of conversation, {usage.computed_tokens} of "
                f"them computed now; {usage.output_tokens} generated)\n"
            )


if __name__ == "__main__":
    main()
