"""Texts and OpenAI-style messages in, answers out.

python examples/python/pipeline.py
"""

import treadle


def main() -> None:
    with treadle.pipeline(treadle.demo_model_path()) as pipe:
        print(pipe("浙江的省会在哪?").text)

        for response in pipe(["What is 37 + 48?", "JSON: Ada, 36, London"]):
            print(response.index, response.text)

        messages = [
            {"role": "user", "content": "浙江的省会在哪?"},
            {"role": "assistant", "content": "浙江的省会是杭州。"},
            {"role": "user", "content": "这有什么好吃的"},
        ]
        print(pipe(messages, max_new_tokens=64).text)

        for response in pipe.stream_infer(["Tell me a story."], max_new_tokens=48):
            print(response.new_text, end="", flush=True)
        print()


if __name__ == "__main__":
    main()
