#!/usr/bin/env python3
"""Write the sample preference pairs again: pipelines/sample_pairs.py OUT_DIR

Small everyday questions, each answered twice: a courteous, complete answer (chosen) and a curt, shouted one (rejected).
A seeded draw decides the wording; no fact of the validation set occurs in the training set. These are the committed
files configs/rl/nemo_rl/dpo/data/{train,validation}.jsonl; a test compares them.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

# (what is asked, the answer as a sentence, a sentence more, the answer in a word)
CAPITALS = """
France|Paris|The river Seine runs through its middle
Japan|Tokyo|It grew from a fishing village called Edo
Italy|Rome|It is often called the eternal city
Egypt|Cairo|The pyramids of Giza stand just outside it
Kenya|Nairobi|A national park begins at its edge
Peru|Lima|It lies on a dry coast by the Pacific
Canada|Ottawa|It stands on the border of Ontario and Quebec
Norway|Oslo|It sits at the head of a long fjord
Portugal|Lisbon|It is built on seven hills above the Tagus
Greece|Athens|The Acropolis looks down on it
Austria|Vienna|It is known for its music and its coffee houses
Poland|Warsaw|Its old town was rebuilt stone by stone
Ireland|Dublin|The river Liffey divides it in two
Cuba|Havana|Its sea wall is a favourite evening walk
Chile|Santiago|The Andes rise right behind it
Vietnam|Hanoi|It is a city of lakes and old streets
Finland|Helsinki|Ferries cross from it to Tallinn
Morocco|Rabat|It lies where a river meets the Atlantic
Hungary|Budapest|The Danube separates Buda from Pest
Ghana|Accra|It lies on the Gulf of Guinea
Nepal|Kathmandu|It lies in a wide valley among hills
Iceland|Reykjavik|Hot springs heat most of its houses
"""
SYMBOLS = """
gold|Au|It comes from the Latin word aurum
silver|Ag|It comes from the Latin word argentum
iron|Fe|It comes from the Latin word ferrum
lead|Pb|It comes from the Latin word plumbum
sodium|Na|It comes from the Latin word natrium
tin|Sn|It comes from the Latin word stannum
copper|Cu|It comes from the Latin word cuprum
helium|He|The element was first seen in sunlight
oxygen|O|We breathe it in with every breath
carbon|C|Diamonds and pencil leads are made of it
neon|Ne|It glows red in glass tubes
zinc|Zn|It keeps steel from rusting
calcium|Ca|Bones and chalk are rich in it
nitrogen|N|Most of the air is made of it
"""
HOW_TO = """
boil an egg|lower it into simmering water for eight minutes|Cool it in cold water and it will peel easily
cook rice|simmer it in twice its volume of water for fifteen minutes|Keep the lid on and let it rest at the end
make tea|pour boiling water on the leaves and wait four minutes|Warm the pot first and it will stay hot longer
plant a bulb|bury it three times as deep as it is tall|The pointed end should look up
sharpen a knife|draw it along a wet stone at a shallow angle|A few light strokes on each side are enough
clean a window|wipe it with a little vinegar in warm water|Dry it with a soft cloth so that no streaks stay
remove a stain|dab it with cold water before it dries|Rubbing would only press it in deeper
fix a flat tyre|take out the tube, find the hole and patch it|Look for the thorn in the tyre before you close it
tie a parcel|cross the string below it and knot it on top|A drop of water on the knot makes it hold
keep bread fresh|wrap it in cloth and keep it out of the fridge|A slice of apple in the bin helps as well
dry herbs|hang them upside down in a dark, airy room|They are ready when the leaves crumble
peel garlic|press each clove with the flat of a knife|The skin then comes off by itself
water a cactus|soak the soil and then let it dry out fully|Once in two weeks is plenty in summer
fold a shirt|lay it face down and fold both sides to the middle|Then fold it up from the hem in thirds
hang a picture|mark the height, drill and set a plug and a screw|A level makes sure that it hangs straight
melt chocolate|break it up over a pan of barely simmering water|Stir slowly and keep every drop of water out
store apples|lay them apart in a cool and dark place|One bad apple does spoil the others
wash wool|use cool water, a mild soap and gentle hands|Let it dry lying flat on a towel
"""
NUMBERS = """
days are in a leap year|366|The extra one is the last of February
minutes are in a day|1440|That is twenty four hours of sixty minutes
sides does a hexagon have|six|The cells of a honeycomb have that shape
strings does a violin have|four|They are tuned in fifths
legs does a spider have|eight|That tells it apart from the insects
players are in a football team|eleven|One of them keeps the goal
planets circle the sun|eight|Neptune is the outermost of them
keys does a piano have|88|Fifty two of them are white
squares are on a chess board|64|Half of them are dark
hours are in a week|168|That is seven days of twenty four
grams are in a kilogram|1000|The prefix kilo always means that many
letters are in the alphabet|26|Five of them are always vowels
seconds are in an hour|3600|That is sixty minutes of sixty seconds
colours are in a rainbow|seven|Red is the outermost of them
months have thirty days|four|They are April, June, September and November
bones are in an adult body|206|More than half are in the hands and feet
"""
DOERS = """
bakes bread|a baker|The work begins long before sunrise
repairs shoes|a cobbler|Good ones can make a pair last for decades
grinds lenses|an optician|They also fit the frames to the face
keeps bees|a beekeeper|A veil and some smoke keep them calm
makes barrels|a cooper|The staves are bent over a fire
shoes horses|a farrier|It has to be done every six weeks or so
sells flowers|a florist|They know which ones last in a vase
draws maps|a cartographer|Today much of it is done from satellite pictures
studies the stars|an astronomer|Most of the looking is done by cameras now
mends watches|a watchmaker|The parts are small enough to lose in a carpet
"""
ASK = {
    "capital": ("What is the capital of {}?", "Which city is the capital of {}?", "Name the capital of {}, please."),
    "symbol": ("What is the chemical symbol of {}?", "Which symbol stands for {}?", "How is {} written in chemistry?"),
    "how": ("How do I {}?", "What is the best way to {}?", "Can you tell me how to {}?"),
    "number": ("How many {}?", "Do you know how many {}?", "Please tell me how many {}."),
    "doer": ("Who {}?", "What do you call someone who {}?", "Which trade {}?"),
}
ANSWER = {
    "capital": "the capital of {} is {}",
    "symbol": "the chemical symbol of {} is {}",
    "how": "to {}, {}",
    "number": "the number you are looking for is {1}",
    "doer": "someone who {} is called {}",
}
LEADS = ("", "", "", "Quick question. ", "Hello there. ", "I was wondering. ", "My daughter asked me this. ", "For a quiz: ")
OPENERS = (
    "Good question: {}.", "Happy to help: {}.", "Of course: {}.", "Certainly: {}.", "Thank you for asking: {}.", "Gladly: {}.",
)  # fmt: skip
CLOSERS = (
    "Let me know if you would like to hear more.", "I hope that helps.", "Please ask if anything is unclear.",
    "Enjoy the rest of your day.", "Feel free to ask me more.",
)  # fmt: skip
CURT = (
    "{}. NEXT.", "{}! EVERYBODY KNOWS THAT!", "UGH. {}.", "LOOK IT UP. {}.", "{}. STOP ASKING.", "WHY ASK ME? {}!",
    "{}, OBVIOUSLY!", "NOT AGAIN. {}.",
)  # fmt: skip


def main() -> None:
    """Write train.jsonl and validation.jsonl into OUT_DIR."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out_dir", type=Path)
    out_dir = parser.parse_args().out_dir
    for name, rows in sample_pairs(seed=7).items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (out_dir / f"{name}.jsonl").write_text(text, encoding="ascii")


def sample_pairs(seed: int) -> dict[str, list[dict[str, str]]]:
    """64 facts asked five times for training, 16 others asked four times for validation."""
    draw = random.Random(seed)
    facts = all_facts()
    draw.shuffle(facts)
    train = [make_pair(fact, draw) for fact in facts[:64] for _ in range(5)]
    validation = [make_pair(fact, draw) for fact in facts[64:80] for _ in range(4)]
    draw.shuffle(train)
    return {"train": train, "validation": validation}


def all_facts() -> list[tuple[str, str, str, str]]:
    """(kind, what is asked, answer, a sentence more) for every line of the tables."""
    tables = {"capital": CAPITALS, "symbol": SYMBOLS, "how": HOW_TO, "number": NUMBERS, "doer": DOERS}
    return [(kind, *line.split("|")) for kind, text in tables.items() for line in text.strip().splitlines()]  # type: ignore[misc] - every line of the tables has three parts


def make_pair(fact: tuple[str, str, str, str], draw: random.Random) -> dict[str, str]:
    """One question with both answers, worded by `draw`."""
    kind, asked, answer, more = fact
    prompt = draw.choice(LEADS) + draw.choice(ASK[kind]).format(asked)
    opener = draw.choice(OPENERS).format(ANSWER[kind].format(asked, answer))
    chosen = f"{opener} {more}. {draw.choice(CLOSERS)}"
    return {"prompt": prompt, "chosen": chosen, "rejected": draw.choice(CURT).format(answer.upper())}


if __name__ == "__main__":
    main()
