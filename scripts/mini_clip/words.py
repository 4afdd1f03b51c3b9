"""What the photographs' captions may call a class: its name, and common words above it."""

from __future__ import annotations

# sets whose names need their context ("stop" is no thing): captions come from their own templates,
# and a word means the class of that set only
CONTEXTS = {
    "dtd10": ["{} texture.", "a photo of a {} texture.", "a {} surface."],
    "gtsrb": ["a {} traffic sign.", "a photo of a {} traffic sign.", "the traffic sign {}."],
    "sign_digits": ["a hand showing the number {}.", "a photo of a hand showing {}."],
    "ucmerced": ["a satellite photo of {}.", "{} seen from above.", "an aerial photo of {}."],
}
GENERIC = [
    "a photo of a {}.",
    "a photo of the {}.",
    "a photo of {}.",
    "a low resolution photo of a {}.",
    "a small photo of a {}.",
    "a blurry photo of the {}.",
    "a cropped photo of a {}.",
    "a picture of a {}.",
    "an image of a {}.",
    "this is a {}.",
    "a {}.",
    "{}",
]
EXTRA = {  # besides the generic ones
    "clothing": ["a photo of a {}, a type of clothes."],
    "flowers5": ["a photo of a {}, a type of flower."],
    "food101": ["a photo of {}, a type of food."],
    "scene15": ["a photo of a {} scene.", "a black and white photo of a {}."],
    "trashnet": ["a photo of {} waste.", "a piece of {}."],
}

# the common words above a set's every class
ABOVE_SET = {"flowers5": ["flower", "plant"], "food101": ["food", "dish"], "trashnet": ["waste"]}

# common word -> classes that it names too, of tiny_imagenet, cifar10, clothing and food101
_ABOVE = {
    "dog": "Chihuahua, German shepherd, Labrador retriever, Yorkshire terrier, golden retriever, "
    "standard poodle",
    "cat": "Egyptian cat, Persian cat, tabby",
    "wild cat": "cougar, lion",
    "bear": "brown bear, koala",
    "monkey": "baboon, chimpanzee, orangutan",
    "elephant": "African elephant",
    "camel": "Arabian camel",
    "pig": "hog",
    "deer": "gazelle",
    "sheep": "bighorn",
    "mammal": "African elephant, Arabian camel, Chihuahua, Egyptian cat, German shepherd, "
    "Labrador retriever, Persian cat, Yorkshire terrier, baboon, bighorn, bison, brown bear, "
    "chimpanzee, cougar, dugong, gazelle, golden retriever, guinea pig, hog, koala, "
    "lesser panda, lion, orangutan, ox, standard poodle, tabby, cat, deer, dog, horse",
    "panda": "lesser panda",
    "crocodile": "American alligator",
    "snake": "boa constrictor",
    "reptile": "American alligator, boa constrictor",
    "frog": "bullfrog, tailed frog",
    "amphibian": "European fire salamander, bullfrog, tailed frog, frog",
    "lizard": "European fire salamander",
    "bird": "albatross, black stork, goose, king penguin",
    "penguin": "king penguin",
    "fish": "goldfish",
    "lobster": "American lobster, spiny lobster",
    "crab": "American lobster, spiny lobster",
    "sea animal": "American lobster, brain coral, coral reef, dugong, goldfish, jellyfish, "
    "sea cucumber, sea slug, spiny lobster",
    "insect": "bee, cockroach, dragonfly, fly, grasshopper, ladybug, mantis, monarch, "
    "sulphur butterfly, centipede",
    "butterfly": "monarch, sulphur butterfly",
    "spider": "black widow, tarantula",
    "animal": "cat, deer, dog, frog, horse, bird, trilobite, snail, slug, scorpion, centipede",
    "car": "beach wagon, convertible, limousine, police van, sports car, automobile, go-kart",
    "bus": "school bus, trolleybus",
    "truck": "moving van, police van, tractor",
    "train": "bullet train, freight car",
    "boat": "gondola, lifeboat, ship",
    "vehicle": "beach wagon, bullet train, convertible, freight car, go-kart, gondola, "
    "jinrikisha, lawn mower, lifeboat, limousine, moving van, police van, school bus, "
    "sports car, tractor, trolleybus, airplane, automobile, ship, truck",
    "aircraft": "airplane",
    "plane": "airplane",
    "bridge": "steel arch bridge, suspension bridge, viaduct",
    "house": "barn, birdhouse, thatch, cliff dwelling",
    "building": "barn, barbershop, butcher shop, beacon, cliff dwelling, thatch, triumphal arch, "
    "water tower",
    "tower": "beacon, obelisk, water tower",
    "shop": "barbershop, butcher shop, confectionery",
    "mountain": "alp, cliff",
    "coast": "cliff, lakeside, seashore",
    "beach": "seashore",
    "lake": "lakeside",
    "sea": "coral reef, seashore",
    "person": "academic gown, bikini, kimono, military uniform, miniskirt, neck brace, poncho, "
    "swimming trunks, jinrikisha",
    "clothes": "academic gown, apron, bikini, bow tie, cardigan, fur coat, kimono, "
    "military uniform, miniskirt, poncho, sandal, sock, sombrero, swimming trunks, vestment, "
    "dress, hat, longsleeve, outwear, pants, shirt, shoes, shorts, skirt, t-shirt",
    "hat": "sombrero",
    "skirt": "miniskirt",
    "coat": "fur coat, outwear",
    "shoe": "sandal, shoes",
    "food": "guacamole, ice cream, ice lolly, mashed potato, meat loaf, pizza, potpie, pretzel, "
    "espresso",
    "fruit": "banana, lemon, orange, pomegranate",
    "vegetable": "bell pepper, cauliflower, mushroom",
    "plant": "acorn, mushroom",
    "furniture": "altar, bathtub, chest, desk, dining table, rocking chair",
    "chair": "rocking chair",
    "table": "desk, dining table",
    "lamp": "lampshade, torch, candle",
    "bottle": "beer bottle, pill bottle, pop bottle, water jug",
    "cup": "beaker, espresso",
    "pan": "frying pan, wok",
    "kitchen tool": "frying pan, teapot, wok, wooden spoon, plate, beaker",
    "ball": "basketball, rugby ball, volleyball",
    "musical instrument": "brass, drumstick, oboe, organ",
    "clock": "hourglass, stopwatch",
    "watch": "stopwatch",
    "electronic device": "CD player, cash machine, computer keyboard, iPod, pay-phone, "
    "remote control, refrigerator, sewing machine, space heater",
    "tool": "abacus, broom, bucket, hourglass, magnetic compass, nail, plunger, syringe, reel, "
    "potter's wheel, sewing machine, lawn mower",
    "toy": "teddy",
    "weapon": "cannon, projectile",
    "glasses": "sunglasses, binoculars, snorkel",
    "bag": "backpack",
    "fence": "picket fence, bannister",
    "book": "comic book",
}


def words(set_name: str, class_name: str) -> list[str]:
    """What a caption may call it, its own name first; ``<set>:<name>`` where that needs context."""
    if set_name in CONTEXTS:
        return [f"{set_name}:{class_name}"]
    above = [word for word, names in _ABOVE.items() if class_name in names.split(", ")]
    return [class_name, *ABOVE_SET.get(set_name, []), *above]


def templates(set_name: str) -> list[str]:
    return CONTEXTS.get(set_name) or GENERIC + EXTRA.get(set_name, [])
