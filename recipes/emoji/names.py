"""Which emoji and which background colors the embedded model knows, by name.

The emoji are those of everyday words whose pictures differ clearly from each other at 64 pixels. Names are Python's
`unicodedata` names in lower case, hyphens as spaces.
"""

import unicodedata

EMOJI: tuple[str, ...] = (
    # food
    "red apple", "green apple", "banana", "grapes", "lemon", "tangerine", "pineapple", "peach", "cherries",
    "strawberry", "watermelon", "tomato", "ear of maize", "mushroom", "hamburger", "slice of pizza", "cookie",
    "doughnut", "birthday cake", "hot beverage", "beer mug",
    # animals
    "dog face", "cat face", "mouse face", "rabbit face", "tiger face", "cow face", "pig face", "frog face",
    "monkey face", "bear face", "panda face", "fox face", "lion face", "unicorn face", "wolf face", "chicken",
    "penguin", "bird", "duck", "owl", "bat", "shark", "dolphin", "tropical fish", "octopus", "crab", "snail",
    "butterfly", "honeybee", "lady beetle", "spider", "turtle", "snake",
    # plants, sky and weather
    "cactus", "palm tree", "evergreen tree", "rose", "tulip", "sunflower", "maple leaf", "four leaf clover",
    "crescent moon", "cloud", "umbrella", "snowman", "fire", "droplet",
    # things that move
    "rocket", "airplane", "automobile", "bus", "bicycle", "tractor", "ambulance", "sailboat",
    # music and sports
    "guitar", "violin", "trumpet", "soccer ball", "basketball and hoop", "american football",
    "tennis racquet and ball",
    # objects
    "key", "lock", "bell", "book", "pencil", "black scissors", "camera", "black telephone", "alarm clock", "watch",
    "hourglass", "crown", "wrapped present", "heavy black heart",
    # beings and faces
    "skull", "ghost", "robot face", "extraterrestrial alien", "grinning face", "smiling face with sunglasses",
    "crying face", "pouting face", "jack o lantern",
)  # fmt: skip

COLORS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "gray": (128, 128, 128),
    "red": (200, 40, 40),
    "yellow": (250, 210, 60),
    "green": (50, 140, 70),
    "blue": (50, 90, 200),
    "purple": (120, 60, 160),
    "pink": (250, 170, 190),
}
"""Backgrounds, sRGB. Far enough apart that the nearest one to a picture's border is not in doubt."""

UNICODE_NAMES = {"jack o lantern": "JACK-O-LANTERN", "book": "OPEN BOOK"}
"""Where the caption is not just the Unicode name in lower case."""


def character(name: str) -> str:
    """The Unicode character of an emoji."""
    return unicodedata.lookup(UNICODE_NAMES.get(name, name.upper()))
