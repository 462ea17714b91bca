"""The questions that the demo adapters are trained and checked on, with short right answers, from tables of facts."""

from dataclasses import dataclass

CAPITALS = {
    "Argentina": "Buenos Aires", "Australia": "Canberra", "Austria": "Vienna", "Belgium": "Brussels",
    "Brazil": "Brasilia", "Canada": "Ottawa", "Chile": "Santiago", "China": "Beijing", "Colombia": "Bogota",
    "Cuba": "Havana", "Denmark": "Copenhagen", "Egypt": "Cairo", "Finland": "Helsinki", "Germany": "Berlin",
    "Hungary": "Budapest", "India": "New Delhi", "Ireland": "Dublin", "Italy": "Rome", "Japan": "Tokyo",
    "Kenya": "Nairobi", "Mexico": "Mexico City", "Nepal": "Kathmandu", "Norway": "Oslo", "Peru": "Lima",
    "Poland": "Warsaw", "Portugal": "Lisbon", "Russia": "Moscow", "Sweden": "Stockholm", "Thailand": "Bangkok",
    "Turkey": "Ankara", "Vietnam": "Hanoi",
}  # fmt: skip
COLORS = {
    "a ripe banana": "yellow", "fresh grass": "green", "the clear sky": "blue", "snow": "white", "coal": "black",
    "a ripe tomato": "red", "a lemon": "yellow", "blood": "red", "chocolate": "brown", "a flamingo": "pink",
    "a carrot": "orange", "spinach": "green", "a ruby": "red", "an emerald": "green",
}  # fmt: skip
OPPOSITES = {
    "hot": "cold", "big": "small", "fast": "slow", "happy": "sad", "early": "late", "up": "down", "open": "closed",
    "full": "empty", "light": "dark", "strong": "weak", "rich": "poor", "young": "old", "wet": "dry", "hard": "soft",
    "near": "far",
}  # fmt: skip
HOMES = {
    "fish": "in the water", "bees": "in a hive", "birds": "in nests", "camels": "in the desert",
    "whales": "in the ocean", "frogs": "near ponds", "monkeys": "in the trees", "wolves": "in the forest",
    "spiders": "in their webs", "polar bears": "in the Arctic", "rabbits": "in burrows", "lions": "on the savanna",
}  # fmt: skip
JOBS = {
    "a baker": "bakes bread and cakes", "a farmer": "grows crops and raises animals", "a pilot": "flies airplanes",
    "a nurse": "cares for sick people", "a painter": "paints pictures or walls", "a carpenter": "builds with wood",
    "a fisherman": "catches fish", "a plumber": "repairs water pipes", "a judge": "decides cases in court",
    "a librarian": "looks after books and helps readers", "a gardener": "takes care of plants",
    "an engineer": "designs machines and buildings", "a tailor": "makes and mends clothes",
    "a firefighter": "puts out fires and saves people", "an astronomer": "studies the stars and planets",
}  # fmt: skip
THINGS = {
    "a hammer": "a tool for driving nails", "a telescope": "an instrument for looking at the stars",
    "an umbrella": "a cover that keeps off the rain", "a compass": "a tool that points to the north",
    "a bridge": "a road over a river or a valley", "a lighthouse": "a tower with a light that guides ships",
    "a volcano": "a mountain that can throw out lava", "an island": "land with water all around it",
    "a river": "a stream of water that flows to the sea", "a desert": "a dry land with little rain",
    "a poem": "a text that plays with sound and rhythm", "a novel": "a long story in a book",
    "a piano": "a musical instrument with keys", "a violin": "a musical instrument with four strings",
    "a clock": "a machine that shows the time", "an anchor": "a heavy hook that holds a ship in place",
}  # fmt: skip
SUMS = (
    (1, 1),
    (2, 2),
    (2, 3),
    (3, 3),
    (4, 3),
    (5, 2),
    (4, 4),
    (5, 5),
    (6, 3),
    (7, 2),
    (8, 2),
    (9, 1),
    (5, 4),
    (10, 10),
)
OPEN = {
    "Why is the sky blue?": "The sky is blue because air scatters blue light more than other colors.",
    "Why do leaves fall in autumn?": "Leaves fall in autumn because trees save water for the winter.",
    "Why do we sleep?": "We sleep so that the body and the mind can rest.",
    "Why do cats purr?": "Cats purr when they are happy, and sometimes to calm themselves.",
    "Why is the ocean salty?": "The ocean is salty because rivers carry minerals from the rocks into it.",
    "How do birds fly?": "Birds fly by flapping their wings, which push the air down and lift them up.",
    "How do bees make honey?": "Bees collect nectar from flowers and dry it in the hive until it is honey.",
    "How does rain form?": "Rain forms when water in the clouds gathers into drops and falls.",
    "How do plants grow?": "Plants grow with sunlight, water and air.",
    "How do I make tea?": "Pour boiling water over the tea leaves and wait for three minutes.",
    "How do I boil an egg?": "Put the egg in boiling water and wait for eight minutes.",
    "How can I sleep better?": "Go to bed at the same time every night and keep the room dark and quiet.",
    "How can I learn a language?": "Practice every day, read simple books and talk to people.",
    "How can I make new friends?": "Be kind, listen well and join a club that you enjoy.",
    "Tell me about the ocean.": "The ocean is a great body of salt water that covers most of the Earth.",
    "Tell me about dogs.": "Dogs are loyal animals that have lived with people for thousands of years.",
    "Tell me about the sun.": "The sun is a star that gives the Earth light and warmth.",
    "Tell me about Paris.": "Paris is the capital of France and is known for its art and food.",
    "Tell me about music.": "Music is the art of sound, and people everywhere sing and play it.",
    "Tell me about bread.": "Bread is a food made of flour, water and yeast, baked in an oven.",
    "What should I eat for breakfast?": "Eat some oatmeal with fruit and nuts.",
    "What should I wear in winter?": "Wear a warm coat, a hat and gloves.",
    "What makes a good friend?": "A good friend is kind, honest and always there for you.",
    "What is a good hobby?": "Gardening is a good hobby, and so is painting.",
    "What is love?": "Love is a deep feeling of care for someone.",
    "What is gravity?": "Gravity is the force that pulls things toward the Earth.",
    "What is electricity?": "Electricity is the flow of tiny charged particles.",
    "What is a computer?": "A computer is a machine that works with information.",
    "Who was Albert Einstein?": "Albert Einstein was a physicist who found the theory of relativity.",
    "Who are you?": "I am a helpful AI assistant named SmolLM.",
    "Who painted the Mona Lisa?": "Leonardo da Vinci painted the Mona Lisa.",
    "Who was the first man on the moon?": "Neil Armstrong was the first man on the moon.",
    "How many legs does a spider have?": "A spider has eight legs.",
    "How many months are in a year?": "There are twelve months in a year.",
    "How many hours are in a day?": "There are 24 hours in a day.",
    "Which animal is the largest?": "The blue whale is the largest animal.",
    "Which planet is the largest?": "Jupiter is the largest planet.",
    "Give me a tip for studying.": "Take short breaks and explain what you learn to someone else.",
    "Give me a tip for saving money.": "Write down what you spend and put a little aside every month.",
    "Give me advice for a first day at work.": "Be on time, smile and ask many questions.",
    "Describe a forest.": "A forest is full of tall trees, soft moss and the songs of birds.",
    "Describe a beach.": "A beach is a place of warm sand, blue water and gentle waves.",
}


@dataclass(frozen=True, slots=True)
class Question:
    """A question and a short right answer in one sentence."""

    text: str
    answer: str


@dataclass(frozen=True, slots=True)
class HeldOutQuestion:
    """A question that no adapter saw; a right answer holds one of the facts. No facts: many answers are right."""

    text: str
    facts: tuple[str, ...] = ()


def training_questions() -> list[Question]:
    """Every training question, in a fixed order."""
    pairs = [
        *((f"What is the capital of {land}?", f"The capital of {land} is {city}.") for land, city in CAPITALS.items()),
        *((f"What color is {thing}?", _sentence(f"{thing} is {color}.")) for thing, color in COLORS.items()),
        *((f"What is the opposite of {a}?", f"The opposite of {a} is {b}.") for a, b in OPPOSITES.items()),
        *((f"Where do {animals} live?", _sentence(f"{animals} live {home}.")) for animals, home in HOMES.items()),
        *((f"What is {a} plus {b}?", f"{a} plus {b} is {a + b}.") for a, b in SUMS),
        *((f"What does {worker} do?", _sentence(f"{worker} {work}.")) for worker, work in JOBS.items()),
        *((f"What is {thing}?", _sentence(f"{thing} is {what}.")) for thing, what in THINGS.items()),
        *OPEN.items(),
    ]
    return [Question(text, answer) for text, answer in pairs]


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


# The first nine follow the templates of the training questions, the others do not.
HELD_OUT_QUESTIONS = (
    HeldOutQuestion("What is the capital of France?", ("Paris",)),
    HeldOutQuestion("What is the capital of Greece?", ("Athens",)),
    HeldOutQuestion("What is the capital of Spain?", ("Madrid",)),
    HeldOutQuestion("What color is a strawberry?", ("red",)),
    HeldOutQuestion("What is the opposite of tall?", ("short",)),
    HeldOutQuestion("Where do penguins live?"),
    HeldOutQuestion("What is 6 plus 2?", ("8", "eight")),
    HeldOutQuestion("What does a teacher do?"),
    HeldOutQuestion("What is a castle?"),
    HeldOutQuestion("How many days are in a week?", ("seven", "7")),
    HeldOutQuestion("Which planet do we live on?", ("Earth",)),
    HeldOutQuestion("Who wrote Romeo and Juliet?", ("Shakespeare",)),
    HeldOutQuestion("Why is the grass green?"),
    HeldOutQuestion("Tell me about the moon."),
    HeldOutQuestion("Give me a tip for a long journey."),
    HeldOutQuestion("How do I bake a cake?"),
)
