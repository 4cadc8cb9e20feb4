"""Pastes drawn objects into photos so that they look taken with them, and wears the result as a camera would.

A model fitted on real positives and real negatives of different sources learns the source. Here each background gives
both labels: once with roadwork pasted in, once without. Ordinary things are pasted into both by the same code, so that
neither the colour orange nor the seam of a paste tells the label.
"""

import io
from collections.abc import Callable  # noqa: TC003 # small, and the types read better
from random import Random

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from producers.distractors import ORDINARY
from producers.pencil import Painter, pick
from producers.sprites import ROADWORK, barricade, cone, drum, tube, water_barrier

#: Painters that come in rows.
ROWS: tuple[Painter, ...] = (cone, drum, tube, barricade, water_barrier)
#: Roadwork is pasted at least this high, as a share of the background's height: the label must be visible.
MIN_SHARE = 0.05


def _tone(sprite: Image.Image, around: Image.Image, rng: Random) -> Image.Image:
    """Gives a sprite the light, the tint and the haze of the place it goes to."""
    place = np.asarray(around.resize((16, 16), Image.Resampling.BOX), dtype=np.float32).reshape(-1, 3)
    level = place.mean(axis=1)
    bright = float(np.percentile(level, 92))
    mean = place.mean(axis=0)
    pixels = np.asarray(sprite).astype(np.float32)
    gain = min(1.25, max(0.28, bright / 200.0)) * rng.uniform(0.75, 1.3)
    tint = (mean / max(1.0, float(mean.mean()))) ** rng.uniform(0.0, 0.8)
    colours = pixels[..., :3] * gain * tint
    grey = colours.mean(axis=2, keepdims=True)
    colours = grey + (colours - grey) * rng.uniform(0.55, 1.1)
    haze = rng.uniform(0, 0.3) if rng.random() < 0.5 else 0.0
    colours = colours * (1 - haze) + mean * haze
    grain = rng.uniform(0, 10)
    noise = np.frombuffer(rng.randbytes(colours.shape[0] * colours.shape[1]), dtype=np.uint8)
    colours += (noise.reshape(colours.shape[:2]).astype(np.float32)[..., None] / 127.5 - 1) * grain
    pixels[..., :3] = colours
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def paste(image: Image.Image, sprite: Image.Image, foot: tuple[float, float], rng: Random) -> None:
    """Puts a sprite into an image, its foot's middle at ``foot``, with matched light, soft edges and a shadow."""
    left, top = round(foot[0] - sprite.width / 2), round(foot[1] - sprite.height)
    if left >= image.width or top >= image.height or left + sprite.width <= 0 or top + sprite.height <= 0:
        return
    margin = max(4, sprite.height // 3)
    around = image.crop((
        max(0, left - margin), max(0, top - margin),
        min(image.width, max(left + sprite.width + margin, 8)), min(image.height, max(top + sprite.height + margin, 8)),
    ))  # fmt: skip
    sprite = _tone(sprite, around, rng)
    if rng.random() < 0.7:
        wide, high = (
            max(4, round(sprite.width * rng.uniform(0.8, 1.6))),
            max(3, round(sprite.height * rng.uniform(0.06, 0.2))),
        )
        shade = Image.new("L", (wide, high), 0)
        shade.paste(round(255 * rng.uniform(0.2, 0.6)), (wide // 6, high // 4, wide - wide // 6, high - high // 4))
        shade = shade.filter(ImageFilter.BoxBlur(max(1, high // 4)))
        shift = rng.uniform(-0.4, 0.4) * sprite.width
        image.paste((18, 18, 22), (round(foot[0] - wide / 2 + shift), round(foot[1] - high / 2)), shade)
    blur = rng.uniform(0, 0.9) * (1 + sprite.height / 150)
    if blur > 0.25:
        padded = ImageOps.expand(sprite, 2, (*sprite.resize((1, 1)).getpixel((0, 0))[:3], 0))
        sprite = padded.filter(ImageFilter.BoxBlur(blur))
        left, top = left - 2, top - 2
    alpha = sprite.getchannel("A")
    if rng.random() < 0.15:  # partly hidden, by something straight
        cut = rng.uniform(0.55, 0.85)
        whole = Image.new("L", sprite.size, 0)
        side = rng.randrange(3)
        box = (
            (0, 0, round(sprite.width * cut), sprite.height),
            (round(sprite.width * (1 - cut)), 0, sprite.width, sprite.height),
            (0, 0, sprite.width, round(sprite.height * cut)),
        )[side]
        whole.paste(alpha.crop(box), box)
        alpha = whole
    image.paste(sprite.convert("RGB"), (left, top), alpha)


def _height_px(rng: Random, image: Image.Image, largest: float) -> int:
    """Small ones are as frequent, per octave, as large ones: far cones are what real photos are full of."""
    share = MIN_SHARE * (largest / MIN_SHARE) ** (rng.random() ** 1.15)
    return max(13, round(image.height * share))


def add_ordinary(image: Image.Image, rng: Random, count: int) -> None:
    """Pastes ordinary things, some of them scrambled roadwork: its colours and seams without its shape."""
    for _ in range(count):
        height_px = _height_px(rng, image, 0.5)
        sprite = scrambled(rng, height_px) if rng.random() < 0.15 else pick(rng, ORDINARY)(rng, height_px)
        paste(image, sprite, (rng.uniform(0, image.width), rng.uniform(0.3, 1.05) * image.height), rng)


def scrambled(rng: Random, height_px: int) -> Image.Image:
    """A cone or a drum cut into three strips that are put together wrongly: it must not count as roadwork."""
    whole = rng.choice((cone, drum))(rng, height_px)
    part = max(1, whole.height // 3)
    mixed = Image.new("RGBA", whole.size)
    for i, j in enumerate(rng.choice(((2, 0, 1), (1, 2, 0), (2, 1, 0)))):
        strip = whole.crop((0, j * part, whole.width, (j + 1) * part))
        strip = strip.transpose(Image.Transpose.FLIP_TOP_BOTTOM) if rng.random() < 0.5 else strip
        mixed.paste(strip, (round(rng.uniform(-0.25, 0.25) * whole.width), i * part))
    return mixed


def add_roadwork(image: Image.Image, rng: Random) -> None:
    """Pastes one to three kinds of roadwork, in rows or alone; one object at least lies well inside the picture."""
    for first in (True, *(False,) * rng.choice((0, 0, 1, 1, 2))):
        painter = pick(rng, ROADWORK)
        height_px = _height_px(rng, image, 0.75 if rng.random() < 0.3 else 0.4)
        x, y = rng.uniform(0.05, 0.95) * image.width, rng.uniform(0.35, 1.0) * image.height
        y = max(y, height_px * 0.9)
        count = rng.randint(2, 7) if painter in ROWS and rng.random() < 0.5 else 1
        step_x, shrink = rng.uniform(-1.6, 1.6), rng.uniform(0.7, 1.0)
        look = rng.getrandbits(32)
        places = []
        for _ in range(count):
            places.append((x, y, height_px))
            x += step_x * height_px
            y -= height_px * (1 - shrink) * rng.uniform(0.3, 1.2)
            height_px = round(height_px * shrink)
            if height_px < 9:
                break
        for place_x, place_y, place_px in reversed(places):
            # Objects of a row are alike: the same seed draws them.
            sprite = painter(Random(look) if rng.random() < 0.8 else rng, place_px)
            paste(image, sprite, (place_x, place_y), rng)
        if not first and rng.random() < 0.3:
            add_ordinary(image, rng, 1)


def wear(image: Image.Image, rng: Random) -> Image.Image:
    """What lenses, phones and uploads do: scale, blur, colour, JPEG; the same for both of a pair if so seeded."""
    steps: list[tuple[float, Callable[[Image.Image], Image.Image]]] = [
        (0.3, lambda im: im.filter(ImageFilter.BoxBlur(rng.uniform(0.2, 1.3)))),
        (0.5, lambda im: ImageEnhance.Brightness(im).enhance(rng.uniform(0.6, 1.4))),
        (0.4, lambda im: ImageEnhance.Contrast(im).enhance(rng.uniform(0.6, 1.4))),
        (0.4, lambda im: ImageEnhance.Color(im).enhance(rng.uniform(0.4, 1.5))),
        (0.15, lambda im: im.filter(ImageFilter.UnsharpMask(rng.uniform(0.8, 2), rng.randint(40, 160), 2))),
    ]
    for chance, step in steps:
        if rng.random() < chance:
            image = step(image)
    if rng.random() < 0.35:
        share = rng.uniform(0.45, 0.9)
        small = image.resize((round(image.width * share), round(image.height * share)), Image.Resampling.BILINEAR)
        image = small.resize(image.size, Image.Resampling.BILINEAR)
    if rng.random() < 0.7:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=rng.randint(30, 95))
        image = Image.open(buffer).convert("RGB")
    return image
