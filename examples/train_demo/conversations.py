"""Random conversations with answers that are right by construction.

Each task function returns the (question, answer) turns of one exchange and draws everything from
the generator it is given, so a seed fixes the text.
"""

import json
import random
from collections.abc import Callable

import chatml
import facts

Turns = list[tuple[str, str]]


def province(rng: random.Random) -> Turns:
    """Asks for a province's capital, then perhaps for its food and for the capital again."""
    name = rng.choice(list(facts.PROVINCES))
    capital, dishes = facts.PROVINCES[name]
    question = rng.choice(
        (
            f"{name}的省会在哪?",
            f"{name}的省会在哪里?",
            f"{name}的省会是哪里?",
            f"请问{name}的省会是什么?",
            f"{name}省会是哪个城市?",
        )
    )
    answer = f"{name}的省会是{capital}。"
    turns = [(question, answer)]
    if rng.random() < 0.7:
        food = rng.choice(
            ("这有什么好吃的", "这有什么好吃的?", "那里有什么好吃的?", "有什么特色美食?")
        )
        turns.append((food, f"{capital}有很多美食,例如{dishes}。"))
    if rng.random() < 0.3:
        turns.append((rng.choice(("刚才说的省会是哪里?", "再说一遍省会。")), answer))
    return turns


def country(rng: random.Random) -> Turns:
    """Asks for a country's capital, then perhaps what to see and which country it was."""
    name = rng.choice(list(facts.CAPITALS))
    question = rng.choice(
        (
            f"What is the capital of {name}?",
            f"capital of {name}?",
            f"Tell me the capital of {name}.",
            f"Which city is the capital of {name}?",
        )
    )
    # "Washington, D.C.." keeps both full stops: the bundled model learned it so.
    turns = [(question, f"The capital of {name} is {facts.CAPITALS[name]}.")]
    if rng.random() < 0.5:
        visit = rng.choice(("What is it famous for?", "Why should I visit it?"))
        sights = facts.SIGHTS.get(name, facts.OTHER_SIGHTS)
        turns.append((visit, f"People visit {name} for {sights}."))
    if rng.random() < 0.3:
        recall = rng.choice(
            ("Which country were we talking about?", "What country did I ask about?")
        )
        turns.append((recall, f"You asked about {name}."))
    return turns


def arithmetic(rng: random.Random) -> Turns:
    """A sum or a difference of numbers below 100, or a product up to 12 x 12; never negative."""
    kind = rng.random()
    if kind < 0.7:
        a, b = rng.randint(0, 99), rng.randint(0, 99)
        if kind < 0.4:
            task, result = f"{a} + {b}", a + b
        else:
            a, b = max(a, b), min(a, b)
            task, result = f"{a} - {b}", a - b
    else:
        a, b = rng.randint(1, 12), rng.randint(1, 12)
        task, result = f"{a} * {b}", a * b
    question = rng.choice((f"What is {task}?", f"{task} = ?", f"Compute {task}.", f"计算 {task}"))
    return [(question, f"{task} = {result}")]


def small_talk(rng: random.Random) -> Turns:
    """A greeting or another question with one fixed answer."""
    return [rng.choice(facts.SMALL_TALK)]


def story(rng: random.Random) -> Turns:
    """A story of eight sentences about an animal."""
    hero, owner = rng.sample(facts.ANIMALS, 2)
    hero_name, owner_name = rng.sample(facts.NAMES, 2)
    place, thing = rng.choice(facts.PLACES), rng.choice(facts.THINGS)
    days = facts.NUMBERS[rng.randint(2, 9)]
    text = (
        f"Once upon a time, a little {hero} named {hero_name} lived near a {place}. "
        f"One morning {hero_name} found an old {thing} lying in the grass. "
        f'"Whose {thing} is this?" {hero_name} asked, but nobody answered. '
        f"So {hero_name} walked along the path until a {owner} named {owner_name} came by. "
        f'"That {thing} is mine," said {owner_name}. "I lost it {days} days ago." '
        f"{hero_name} gave the {thing} back, and {owner_name} was very happy. "
        f"From that day on, {hero_name} the {hero} and {owner_name} the {owner} were friends, "
        f"and they met at the {place} every {rng.choice(facts.TIMES)}. "
        f"The story teaches us about {rng.choice(facts.VIRTUES)}."
    )
    question = rng.choice(
        (
            f"Tell me a story about a {hero}.",
            f"Write a short story about a {hero}.",
            f"I want a story about a {hero}.",
        )
    )
    return [(question, text)]


def word_game(rng: random.Random) -> Turns:
    """Repeat, reverse, upper-case, count or sort two to seven words."""
    words = [rng.choice(facts.WORDS) for _ in range(rng.randint(2, 7))]
    joined = " ".join(words)
    games = (
        ("Repeat", joined),
        ("Reverse the order", " ".join(reversed(words))),
        ("Upper case", joined.upper()),
        ("How many words", f"There are {facts.NUMBERS[len(words)]} words."),
        ("Sort", " ".join(sorted(words))),
    )
    task, answer = rng.choice(games)
    return [(f"{task}: {joined}", answer)]


def json_record(rng: random.Random) -> Turns:
    """A name, an age and a city put into a JSON object."""
    name, age = rng.choice(facts.NAMES), rng.randint(5, 90)
    city = rng.choice(list(facts.CAPITALS.values()))
    question = rng.choice(
        (f"Make JSON for {name}, age {age}, city {city}.", f"JSON: {name}, {age}, {city}")
    )
    return [(question, json.dumps({"name": name, "age": age, "city": city}))]


def pass_key(rng: random.Random) -> Turns:
    """Five digits hidden among up to 90 filler sentences and asked for at the end."""
    key = "".join(rng.choice("0123456789") for _ in range(5))
    count = rng.randint(2, 90)
    sentences = [facts.FILLER[i % len(facts.FILLER)] for i in range(count)]
    needle = f"The pass key is {key}. Remember it. {key} is the pass key."
    sentences.insert(rng.randint(0, count), needle)
    question = " ".join(sentences) + " What is the pass key?"
    return [(question, f"The pass key is {key}.")]


def introduction(rng: random.Random) -> Turns:
    """The user's name, another exchange, and the name asked back."""
    name = rng.choice(facts.NAMES)
    between = rng.choice((arithmetic, country, province))(rng)
    return [
        (f"My name is {name}.", f"Nice to meet you, {name}!"),
        *between,
        ("What is my name?", f"Your name is {name}."),
    ]


#: Every task with its relative frequency.
TASKS: dict[Callable[[random.Random], Turns], float] = {
    province: 5,
    country: 5,
    arithmetic: 5,
    small_talk: 1.2,
    story: 3,
    word_game: 4,
    json_record: 1.5,
    pass_key: 2.5,
    introduction: 2,
}


def conversation(rng: random.Random) -> str:
    """Returns the ChatML text of one to three exchanges, three in ten under a system prompt."""
    messages = []
    exchanges = rng.choice((1, 1, 1, 2, 3))
    if rng.random() < 0.3:
        messages.append(("system", rng.choice(facts.SYSTEM_PROMPTS)))
    for task in rng.choices(list(TASKS), list(TASKS.values()), k=exchanges):
        for question, answer in task(rng):
            messages += [("user", question), ("assistant", answer)]
    return chatml.render(messages)


def capital_list(rng: random.Random) -> str:
    """Returns two to eight lines such as `浙江 -> 杭州`, each province at most once."""
    names = rng.sample(list(facts.PROVINCES), rng.randint(2, 8))
    return "".join(f"{name} -> {facts.PROVINCES[name][0]}\n" for name in names)
