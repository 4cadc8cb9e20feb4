"""Ordinary street things, drawn, that share a colour or a shape with roadwork: so that "orange" alone tells nothing."""

from random import Random

from PIL import Image

from producers.pencil import (
    BLACK,
    GREY,
    WHITE,
    Colour,
    Painter,
    any_colour,
    canvas,
    finish,
    hsv,
    revolve,
    ring_bands,
    safety_orange,
)
from producers.sprites import person


def _paint(rng: Random) -> Colour:
    """Any colour; every second one is an orange or a red, so that these mean nothing."""
    return safety_orange(rng) if rng.random() < 0.5 else any_colour(rng)


def car(rng: Random, height_px: int) -> Image.Image:
    """A car from behind, or from the side."""
    body = _paint(rng)
    glass = hsv(rng, (0.5, 0.65), (0, 0.3), (0.1, 0.45))
    if rng.random() < 0.6:
        image, draw, wide, high = canvas(height_px, rng.uniform(1.0, 1.4))
        for x in (0.08, 0.76):
            draw.rectangle([wide * x, high * 0.8, wide * (x + 0.16), high], fill=BLACK)
        draw.polygon(
            [(wide * 0.2, 0), (wide * 0.8, 0), (wide * 0.95, high * 0.45), (wide * 0.05, high * 0.45)], fill=body
        )
        draw.polygon(
            [
                (wide * 0.25, high * 0.06),
                (wide * 0.75, high * 0.06),
                (wide * 0.86, high * 0.4),
                (wide * 0.14, high * 0.4),
            ],
            fill=glass,
        )
        draw.rounded_rectangle([0, high * 0.4, wide, high * 0.9], radius=high * 0.1, fill=body)
        for x in (0.03, 0.85):
            draw.rectangle([wide * x, high * 0.48, wide * (x + 0.12), high * 0.6], fill=(190, 24, 20))
        draw.rectangle([wide * 0.38, high * 0.62, wide * 0.62, high * 0.74], fill=WHITE)
    else:
        image, draw, wide, high = canvas(height_px, rng.uniform(2.2, 3.2))
        draw.polygon(
            [(wide * 0.2, high * 0.45), (wide * 0.35, 0), (wide * 0.7, 0), (wide * 0.85, high * 0.45)], fill=body
        )
        draw.polygon(
            [
                (wide * 0.25, high * 0.42),
                (wide * 0.37, high * 0.07),
                (wide * 0.68, high * 0.07),
                (wide * 0.8, high * 0.42),
            ],
            fill=glass,
        )
        draw.rounded_rectangle([0, high * 0.4, wide, high * 0.82], radius=high * 0.12, fill=body)
        for x in (0.14, 0.7):
            draw.ellipse([wide * x, high * 0.58, wide * x + high * 0.42, high], fill=BLACK)
    return finish(image, rng, height_px)


def van(rng: Random, height_px: int) -> Image.Image:
    """A box with wheels and a windscreen: a van, a bus, a three-wheeler."""
    image, draw, wide, high = canvas(height_px, rng.uniform(0.7, 2.2))
    body, roof = _paint(rng), _paint(rng)
    draw.rounded_rectangle([0, 0, wide, high * 0.9], radius=high * 0.06, fill=body)
    draw.rectangle([0, 0, wide, high * rng.uniform(0.04, 0.3)], fill=roof)
    draw.rectangle([wide * 0.1, high * 0.2, wide * 0.9, high * 0.5], fill=(52, 60, 68))
    for x in (0.1, 0.7):
        draw.ellipse([wide * x, high * 0.78, wide * x + high * 0.22, high], fill=BLACK)
    return finish(image, rng, height_px)


def panel(rng: Random, height_px: int) -> Image.Image:
    """A shop sign, a billboard, an awning: a flat rectangle with lines of text."""
    image, draw, wide, high = canvas(height_px, rng.uniform(0.4, 4.0))
    body, ink = _paint(rng), rng.choice((WHITE, BLACK, any_colour(rng)))
    draw.rectangle([0, 0, wide, high], fill=body)
    for i in range(rng.randint(0, 4)):
        y = high * (0.15 + 0.2 * i)
        draw.line(
            [wide * rng.uniform(0.05, 0.3), y, wide * rng.uniform(0.6, 0.95), y], fill=ink, width=max(2, high // 12)
        )
    return finish(image, rng, height_px)


def blob(rng: Random, height_px: int) -> Image.Image:
    """A shapeless patch: leaves, cloth, a bag, an animal's back."""
    image, draw, wide, high = canvas(height_px, rng.uniform(0.5, 2.0))
    body = _paint(rng)
    for _ in range(rng.randint(2, 7)):
        x, y = rng.uniform(0.1, 0.6) * wide, rng.uniform(0.1, 0.6) * high
        draw.ellipse([x, y, x + rng.uniform(0.15, 0.4) * wide, y + rng.uniform(0.15, 0.4) * high], fill=body)
    return finish(image, rng, height_px, round_shading=True)


def post(rng: Random, height_px: int) -> Image.Image:
    """A bollard or a pole, plain or ringed red and white: permanent furniture."""
    image, draw, wide, high = canvas(height_px, rng.uniform(0.06, 0.16))
    ring = rng.choice((WHITE, GREY, any_colour(rng)))
    bands = ring_bands(rng, _paint(rng), ring, rng.choice((0, 1, 2, 5)), (0.02, 0.98))
    revolve(draw, wide / 2, (0, high * 0.99), (wide * 0.45, wide * 0.45), bands, bend=0.1)
    return finish(image, rng, height_px, round_shading=True)


def hydrant(rng: Random, height_px: int) -> Image.Image:
    """A hydrant, a bin or a letter box: a stout round body with a cap, no stripes."""
    image, draw, wide, high = canvas(height_px, rng.uniform(0.4, 0.75))
    body = _paint(rng)
    revolve(
        draw,
        wide / 2,
        (high * 0.12, high * 0.97),
        (wide * rng.uniform(0.3, 0.45), wide * 0.42),
        [(0, 1, body)],
        bend=0.15,
    )
    draw.pieslice([wide * 0.12, 0, wide * 0.88, high * 0.35], 180, 360, fill=rng.choice((body, any_colour(rng))))
    if rng.random() < 0.5:
        draw.rectangle([0, high * 0.4, wide, high * 0.55], fill=body)
    return finish(image, rng, height_px, round_shading=True)


def traffic_sign(rng: Random, height_px: int) -> Image.Image:
    """A permanent traffic sign: octagon, circle, triangle, yellow diamond or blue square."""
    image, draw, wide, high = canvas(height_px, rng.uniform(0.28, 0.45))
    r = wide / 2
    draw.line([r, r, r, high], fill=GREY, width=max(2, wide // 12))
    red = hsv(rng, (-0.03, 0.015), (0.75, 1), (0.5, 0.9))
    kind = rng.randrange(5)
    if kind == 0:
        draw.regular_polygon((r, r, r), 8, rotation=22.5, fill=red, outline=WHITE)
        draw.line([r * 0.5, r, r * 1.5, r], fill=WHITE, width=max(2, wide // 6))
    elif kind == 1:
        draw.ellipse([0, 0, wide, wide], fill=red)
        draw.ellipse([wide * 0.15, wide * 0.15, wide * 0.85, wide * 0.85], fill=rng.choice((WHITE, (24, 60, 150))))
    elif kind == 2:
        draw.regular_polygon((r, r, r), 3, rotation=rng.choice((0, 180)), fill=red)
        draw.regular_polygon((r, r, r * 0.65), 3, fill=WHITE)
    elif kind == 3:
        draw.regular_polygon((r, r, r), 4, rotation=45, fill=hsv(rng, (0.12, 0.15), (0.8, 1), (0.75, 0.95)))
        draw.line([r, r * 0.5, r, r * 1.4], fill=BLACK, width=max(2, wide // 8))
    else:
        draw.rectangle([0, 0, wide, wide], fill=rng.choice(((20, 70, 160), (16, 110, 60), WHITE)))
        draw.line([r * 0.6, r * 1.4, r * 1.4, r * 0.6], fill=rng.choice((WHITE, BLACK)), width=max(2, wide // 8))
    return finish(image, rng, height_px)


def traffic_light(rng: Random, height_px: int) -> Image.Image:
    """A traffic light on its pole."""
    image, draw, wide, high = canvas(height_px, rng.uniform(0.14, 0.24))
    draw.line([wide / 2, 0, wide / 2, high], fill=GREY, width=max(2, wide // 5))
    body = rng.choice((BLACK, (200, 160, 30)))
    draw.rectangle([0, 0, wide, high * 0.4], fill=body)
    lit = rng.randrange(3)
    for i, colour in enumerate(((230, 40, 30), (250, 170, 30), (40, 220, 120))):
        fill = colour if i == lit else (50, 46, 44)
        draw.ellipse(
            [wide * 0.2, high * (0.03 + 0.125 * i), wide * 0.8, high * (0.03 + 0.125 * i) + wide * 0.6], fill=fill
        )
    return finish(image, rng, height_px)


def tree(rng: Random, height_px: int) -> Image.Image:
    """A tree, green or in autumn colours."""
    image, draw, wide, high = canvas(height_px, rng.uniform(0.5, 0.9))
    draw.rectangle([wide * 0.45, high * 0.5, wide * 0.55, high], fill=hsv(rng, (0.05, 0.1), (0.2, 0.5), (0.15, 0.4)))
    hue = rng.choice(((0.2, 0.38), (0.2, 0.38), (0.03, 0.14)))
    for _ in range(14):
        x, y = rng.uniform(0, 0.65) * wide, rng.uniform(0, 0.5) * high
        fill = hsv(rng, hue, (0.3, 0.8), (0.15, 0.6))
        draw.ellipse([x, y, x + 0.35 * wide, y + 0.25 * high], fill=fill)
    return finish(image, rng, height_px)


#: What makes no scene roadwork, with how often each is drawn.
ORDINARY: dict[Painter, int] = {
    car: 4, van: 2, panel: 3, blob: 3, post: 3, hydrant: 2, traffic_sign: 3, traffic_light: 1, person: 2, tree: 1,
}  # fmt: skip
