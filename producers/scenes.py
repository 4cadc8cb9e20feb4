"""The project's own street scenes, drawn with Pillow and labelled by construction: 1 with roadwork in sight, 0 without.

They need no photos, so the demonstration and the tests can run anywhere; and they are a small part of what the two
scout models are trained on. They are drawings: a figure measured on them says that the fleet works, not how good a
model is.
"""

from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from producers.distractors import ORDINARY, car, panel, post, traffic_light, traffic_sign, tree
from producers.pencil import Painter, hsv, pick
from producers.sprites import ROADWORK, cone, drum, person, tube

#: Seeds that ops/train may draw from, and seeds of the demonstration. Disjoint: no demo scene was ever trained on.
TRAINING_SEEDS = range(1_000_000_000, 2_000_000_000)
DEMO_SEEDS = range(1_000_000_000)

#: Height of things in metres, to give them a size that fits their distance.
HEIGHT_M: dict[Painter, float] = dict.fromkeys((*ROADWORK, *ORDINARY), 1.6) | {
    cone: 0.9, drum: 1.1, tube: 1.1,
    car: 1.5, person: 1.75, panel: 1.5, post: 2.5, traffic_sign: 2.8, traffic_light: 4.0, tree: 6.0,
}  # fmt: skip
#: Height of the camera over the road; things that high end at the horizon.
CAMERA_M = 1.5
#: A roadwork object is drawn at least this high, as a share of the scene: the label must be visible.
MIN_SHARE = 0.055


def _backdrop(rng: Random, wide: int, high: int, horizon: int) -> Image.Image:
    sky = hsv(rng, (0.5, 0.65), (0.0, 0.6), (0.45, 1.0))
    low = hsv(rng, (0.05, 0.6), (0.0, 0.25), (0.6, 1.0))
    column = Image.new("RGB", (1, 2))
    column.putpixel((0, 0), sky)
    column.putpixel((0, 1), low)
    image = column.resize((wide, high), Image.Resampling.BILINEAR, box=(0, 0.5, 1, 1.5))
    draw = ImageDraw.Draw(image)
    ground = hsv(rng, (0.05, 0.35), (0.1, 0.6), (0.2, 0.6))
    draw.rectangle([0, horizon, wide, high], fill=ground)
    for side in (0, 1):  # facades or greenery, higher towards the edge of the scene
        x = 0.0
        while x < wide * rng.uniform(0.3, 0.5):
            step = wide * rng.uniform(0.05, 0.16)
            near = 1 - x / (wide * 0.5)
            top = horizon - high * near * rng.uniform(0.1, 0.7)
            left = x if side == 0 else wide - x - step
            green = rng.random() < 0.35
            wall = (
                hsv(rng, (0.2, 0.36), (0.2, 0.7), (0.15, 0.5))
                if green
                else hsv(rng, (0.0, 0.15), (0.0, 0.5), (0.2, 0.85))
            )
            foot = horizon + high * near * 0.12
            draw.rectangle([left, top, left + step, foot], fill=wall)
            if not green:
                glass = hsv(rng, (0.5, 0.65), (0, 0.3), (0.1, 0.6))
                pitch = max(6, int(step / rng.randint(2, 5)))
                for wx in range(int(left) + 2, int(left + step) - pitch // 2, pitch):
                    for wy in range(int(top) + 4, int(foot) - pitch, pitch + 2):
                        draw.rectangle([wx, wy, wx + pitch * 0.5, wy + pitch * 0.6], fill=glass)
            x += step * rng.uniform(0.8, 1.1)
    return image


def _road(rng: Random, image: Image.Image, horizon: int, vanish_x: float) -> float:
    """Draws pavement, road and marks; gives the half-width of the road at the lower edge."""
    wide, high = image.size
    draw = ImageDraw.Draw(image)
    half = wide * rng.uniform(0.45, 1.1)
    tone = rng.randint(50, 150)
    pavement = tuple(min(255, tone + rng.randint(10, 70)) for _ in range(3))
    draw.polygon([(vanish_x, horizon), (wide / 2 + half * 1.5, high), (wide / 2 - half * 1.5, high)], fill=pavement)
    draw.polygon(
        [(vanish_x, horizon), (wide / 2 + half, high), (wide / 2 - half, high)],
        fill=(tone, tone, tone + rng.randint(-8, 8)),
    )
    paint = rng.choice(((225, 225, 220), (225, 225, 220), (220, 170, 40)))

    def line(offset: float, start: float, end: float) -> None:
        points = []
        for t, sign in ((start, -1), (start, 1), (end, 1), (end, -1)):
            x = vanish_x + (wide / 2 + half * offset - vanish_x) * t + sign * half * 0.02 * t
            points.append((x, horizon + (high - horizon) * t))
        draw.polygon(points, fill=paint)

    for offset in rng.choice(((-0.95, 0.95), (-0.9,), ())):
        line(offset, 0.05, 1.0)
    for offset in rng.choice(((0.0,), (-0.33, 0.33), (-0.05, 0.05), ())):
        t = 0.06
        while t < 1:
            line(offset, t, min(1.0, t * 1.35))
            t *= 1.8
    return half


def _stand(rng: Random, image: Image.Image, painter: Painter, at: tuple[float, float], height_px: int) -> None:
    """Puts one thing on the ground at ``at`` (middle of its foot), with its shadow."""
    sprite = painter(rng, height_px)
    left, top = round(at[0] - sprite.width / 2), round(at[1] - sprite.height)
    shade = Image.new("L", (sprite.width, max(2, sprite.height // 10)), 90)
    image.paste((20, 20, 24), (left + sprite.width // 8, round(at[1]) - shade.height // 2), shade)
    image.paste(sprite, (left, top), sprite)


def _things(rng: Random, horizon_share: float, *, roadwork: bool) -> list[tuple[float, Painter, float]]:
    """(depth, painter, offset from the road's middle in half-widths), in drawing order; depth 1 is the lower edge."""
    things: list[tuple[float, Painter, float]] = []
    for _ in range(rng.randint(2, 9)):
        painter = pick(rng, ORDINARY)
        aside = rng.uniform(-0.9, 0.9) if painter is car else rng.choice((-1, 1)) * rng.uniform(1.0, 1.8)
        things.append((rng.uniform(0.08, 0.75) ** 1.3, painter, aside))
    if roadwork:
        for _ in range(rng.choice((1, 1, 2, 3))):
            painter = pick(rng, ROADWORK)
            depth, aside = rng.uniform(0.15, 0.9), rng.uniform(-1.3, 1.3)
            row = rng.randint(2, 7) if HEIGHT_M[painter] < 1.5 and rng.random() < 0.6 else 1
            slope = rng.uniform(-0.5, 0.5)
            things += [(depth * 0.82**i, painter, aside + slope * i / row) for i in range(row)]
    floor = MIN_SHARE / (1 - horizon_share)
    # Roadwork comes last: nothing ordinary may hide what the label promises.
    return sorted(
        ((max(depth, floor), painter, aside) for depth, painter, aside in things),
        key=lambda thing: (thing[1] in ROADWORK, thing[0]),
    )


def render(seed: int, size_px: tuple[int, int] = (640, 360)) -> tuple[Image.Image, int]:
    """One RGB scene and its label, the same for the same seed and size; half of the seeds give label 1."""
    rng = Random(seed)  # noqa: S311 # scenes, no secrets
    wide, high = size_px
    label = int(rng.random() < 0.5)
    horizon = round(high * rng.uniform(0.3, 0.55))
    vanish_x = wide * rng.uniform(0.3, 0.7)
    image = _backdrop(rng, wide, high, horizon)
    half = _road(rng, image, horizon, vanish_x)
    for depth, painter, aside in _things(rng, horizon / high, roadwork=label == 1):
        x = vanish_x + (wide / 2 + half * aside - vanish_x) * depth
        if painter in ROADWORK:
            x = min(max(x, wide * 0.04), wide * 0.96)
        height_px = round((high - horizon) * depth * HEIGHT_M[painter] / CAMERA_M * rng.uniform(0.75, 1.15))
        least = round(high * MIN_SHARE) if painter in ROADWORK else 4
        _stand(rng, image, painter, (x, horizon + (high - horizon) * depth), max(least, min(height_px, high)))
    return _weather(rng, image), label


def _weather(rng: Random, image: Image.Image) -> Image.Image:
    """Light, haze, blur and noise of a real camera."""
    if rng.random() < 0.3:
        image = Image.blend(
            image, Image.new("RGB", image.size, hsv(rng, (0, 1), (0, 0.15), (0.5, 0.95))), rng.uniform(0.05, 0.4)
        )
    if rng.random() < 0.2:  # dusk
        image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.45, 0.7))
    image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.75, 1.25))
    image = ImageEnhance.Color(image).enhance(rng.uniform(0.5, 1.2))
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.BoxBlur(rng.uniform(0.3, 1.4)))
    # One small tile of noise, repeated: drawing it for every pixel would take longer than the scene.
    side = 128
    tile = np.frombuffer(rng.randbytes(side * side), dtype=np.uint8).reshape(side, side).astype(np.int16) - 128
    strength = rng.uniform(0, 14)
    rows, columns = -(-image.height // side), -(-image.width // side)
    grain = np.tile((tile * strength / 128).astype(np.int16), (rows, columns))[: image.height, : image.width]
    noisy = np.asarray(image, dtype=np.int16) + grain[..., None]
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
