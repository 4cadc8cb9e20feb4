"""Roadwork objects, drawn: cones, drums, barricades, signs, arrow boards, excavators, workers, fences.

Used by producers/scenes.py, and by the compositor that pastes roadwork into real photos for training.
"""

from random import Random

from PIL import Image

from producers.pencil import (
    BLACK,
    GREY,
    WHITE,
    Painter,
    any_colour,
    canvas,
    finish,
    hsv,
    revolve,
    ring_bands,
    safety_orange,
    striped_board,
)


def cone(rng: Random, height_px: int) -> Image.Image:
    """A traffic cone on its base, with none to three reflective collars."""
    image, draw, wide, high = canvas(height_px, rng.uniform(0.55, 0.85))
    body = safety_orange(rng)
    base = body if rng.random() < 0.65 else hsv(rng, (0, 1), (0, 0.2), (0.08, 0.35))
    thick = rng.uniform(0.03, 0.09) * high
    depth = rng.uniform(0.02, 0.12) * high
    floor = high - 1 - depth / 2
    draw.polygon([(0, floor), (wide * 0.12, floor - depth), (wide * 0.88, floor - depth), (wide, floor)], fill=base)
    draw.rectangle([0, floor - thick * 0.3, wide, high], fill=base)
    stripe = (
        hsv(rng, (0.1, 0.2), (0, 0.12), (0.75, 1))
        if rng.random() < 0.92
        else hsv(rng, (0.12, 0.17), (0.6, 1), (0.8, 1))
    )
    count = rng.choice((0, 1, 1, 2, 2, 2, 3))
    first, last = rng.uniform(0.1, 0.3), rng.uniform(0.6, 0.85)
    half = (rng.uniform(0.04, 0.11) * wide, rng.uniform(0.28, 0.38) * wide)
    revolve(
        draw,
        wide / 2,
        (high * 0.01, floor - depth * 0.5),
        half,
        ring_bands(rng, body, stripe, count, (first, last)),
        bend=rng.uniform(0.05, 0.3),
    )
    return finish(image, rng, height_px, round_shading=True)


def drum(rng: Random, height_px: int) -> Image.Image:
    """A channelising drum: an orange barrel with white rings on a black foot."""
    image, draw, wide, high = canvas(height_px, rng.uniform(0.5, 0.75))
    body = safety_orange(rng)
    draw.ellipse([0, high * 0.88, wide, high - 1], fill=BLACK)
    half = (wide * rng.uniform(0.3, 0.42), wide * rng.uniform(0.4, 0.48))
    revolve(
        draw,
        wide / 2,
        (high * 0.04, high * 0.92),
        half,
        ring_bands(rng, body, WHITE, rng.choice((2, 2, 3)), (0.12, 0.9)),
        bend=rng.uniform(0.05, 0.2),
    )
    draw.ellipse([wide * 0.4, 0, wide * 0.6, high * 0.08], fill=body)
    return finish(image, rng, height_px, round_shading=True)


def tube(rng: Random, height_px: int) -> Image.Image:
    """A tubular marker or a vertical panel with stripes, on a foot."""
    image, draw, wide, high = canvas(height_px, rng.uniform(0.22, 0.4))
    body = safety_orange(rng)
    draw.ellipse([0, high * 0.9, wide, high - 1], fill=rng.choice((BLACK, body, GREY)))
    if rng.random() < 0.5:
        half = wide * rng.uniform(0.14, 0.24)
        revolve(
            draw,
            wide / 2,
            (0, high * 0.95),
            (half, half),
            ring_bands(rng, body, WHITE, rng.choice((1, 2, 3)), (0.08, 0.5)),
            bend=0.2,
        )
    else:
        panel = striped_board(
            (round(wide * 0.7), round(high * 0.7)),
            (body, WHITE),
            high * rng.uniform(0.15, 0.3),
            rng.choice((-1, 1)) * 0.4,
        )
        draw.rectangle([wide * 0.42, high * 0.6, wide * 0.58, high * 0.95], fill=body)
        image.paste(panel, (round(wide * 0.15), 0))
    return finish(image, rng, height_px, round_shading=True)


def barricade(rng: Random, height_px: int) -> Image.Image:
    """One to three striped boards on two legs, sometimes with a lamp."""
    image, draw, wide, high = canvas(height_px, rng.uniform(0.7, 2.4))
    colours = (safety_orange(rng), WHITE)
    for x in (0.12, 0.88):
        draw.line(
            [wide * x, high * 0.08, wide * (x + rng.uniform(-0.05, 0.05)), high],
            fill=rng.choice((GREY, WHITE, colours[0])),
            width=max(2, high // 18),
        )
    boards = rng.choice((1, 2, 3))
    thick = round(high * rng.uniform(0.14, 0.24))
    lean = rng.choice((-1, 1)) * rng.uniform(0.5, 1.2)
    for i in range(boards):
        image.paste(
            striped_board((wide, thick), colours, thick * rng.uniform(1.0, 2.0), lean),
            (0, round(high * (0.06 + i * 0.3))),
        )
    if rng.random() < 0.3:
        draw.ellipse(
            [wide * 0.08, 0, wide * 0.08 + high * 0.12, high * 0.12], fill=hsv(rng, (0.09, 0.14), (0.7, 1), (0.8, 1))
        )
    return finish(image, rng, height_px)


def water_barrier(rng: Random, height_px: int) -> Image.Image:
    """A row of plastic barrier blocks, red or orange, some white."""
    count = rng.choice((1, 1, 2, 3, 5))
    image, draw, wide, high = canvas(height_px, min(5.0, count * rng.uniform(1.0, 1.6)))
    colours = [safety_orange(rng), WHITE if rng.random() < 0.5 else safety_orange(rng)]
    step = wide / count
    for i in range(count):
        x, fill = i * step, colours[i % 2]
        draw.polygon(
            [(x + step * 0.1, 0), (x + step * 0.9, 0), (x + step * 0.99, high), (x + step * 0.01, high)], fill=fill
        )
        dark = tuple(int(c * 0.75) for c in fill)
        draw.rectangle(
            [x + step * 0.2, high * 0.25, x + step * 0.8, high * 0.6], outline=dark, width=max(2, high // 20)
        )
        draw.rectangle([x + step * 0.25, high * 0.85, x + step * 0.4, high], fill=(0, 0, 0, 0))
    return finish(image, rng, height_px)


def diamond_sign(rng: Random, height_px: int) -> Image.Image:
    """An orange diamond or a rectangular work-zone sign, on a pole or a tripod."""
    image, draw, wide, high = canvas(height_px, rng.uniform(0.45, 0.8))
    side = wide / 2
    body = hsv(rng, (0.02, 0.1), (0.8, 1), (0.7, 1))
    draw.line([side, side, side, high], fill=GREY, width=max(2, wide // 22))
    if rng.random() < 0.5:
        draw.line([side, high * 0.8, wide * 0.15, high], fill=GREY, width=max(2, wide // 22))
        draw.line([side, high * 0.8, wide * 0.85, high], fill=GREY, width=max(2, wide // 22))
    if rng.random() < 0.8:
        for inset, fill in ((0.0, body), (0.1, BLACK), (0.14, body)):
            r = side * (1 - inset)
            draw.polygon([(side, side - r), (side + r, side), (side, side + r), (side - r, side)], fill=fill)
    else:
        draw.rectangle([0, side * 0.3, wide, side * 1.5], fill=body, outline=BLACK, width=max(1, wide // 40))
    if rng.random() < 0.35:  # a figure with a shovel
        draw.ellipse([side * 0.9, side * 0.45, side * 1.1, side * 0.65], fill=BLACK)
        draw.line(
            [side, side * 0.65, side * 0.85, side * 1.1, side * 0.65, side * 1.4], fill=BLACK, width=max(2, wide // 16)
        )
        draw.line([side * 0.95, side * 0.8, side * 1.4, side * 1.2], fill=BLACK, width=max(2, wide // 24))
    else:  # words
        for i in range(rng.choice((1, 2, 3))):
            y = side * (0.7 + i * 0.25)
            draw.line(
                [side * rng.uniform(0.5, 0.7), y, side * rng.uniform(1.3, 1.5), y], fill=BLACK, width=max(2, wide // 14)
            )
    return finish(image, rng, height_px)


def arrow_board(rng: Random, height_px: int) -> Image.Image:
    """A dark panel with an arrow of lamps on an orange trailer."""
    image, draw, wide, high = canvas(height_px, rng.uniform(0.9, 1.4))
    body = hsv(rng, (0.03, 0.13), (0.75, 1), (0.6, 1))
    lamp = hsv(rng, (0.09, 0.15), (0.3, 0.9), (0.9, 1))
    draw.rectangle([wide * 0.44, high * 0.4, wide * 0.56, high * 0.85], fill=body)
    draw.rectangle([wide * 0.1, high * 0.72, wide * 0.9, high * 0.88], fill=body)
    for x in (0.2, 0.7):
        draw.ellipse([wide * x, high * 0.82, wide * x + high * 0.17, high], fill=BLACK)
    draw.rectangle([0, 0, wide, high * 0.55], fill=hsv(rng, (0, 1), (0, 0.2), (0.05, 0.22)))
    right = rng.random() < 0.5
    dot = high * 0.035
    points = [(0.15 + 0.1 * i, 0.27) for i in range(8)] + [(0.75, 0.15), (0.75, 0.39), (0.65, 0.06), (0.65, 0.48)]
    for px, py in points:
        x = wide * (px if right else 1 - px)
        draw.ellipse([x - dot, high * py - dot, x + dot, high * py + dot], fill=lamp)
    return finish(image, rng, height_px)


def excavator(rng: Random, height_px: int) -> Image.Image:
    """An excavator seen from the side: tracks, house, cab, boom and bucket."""
    image, draw, wide, high = canvas(height_px, rng.uniform(1.2, 1.8))
    body = hsv(rng, (0.03, 0.14), (0.75, 1), (0.6, 0.95))
    draw.rounded_rectangle([wide * 0.02, high * 0.8, wide * 0.58, high - 1], radius=high * 0.1, fill=(46, 44, 42))
    draw.rectangle([wide * 0.02, high * 0.5, wide * 0.5, high * 0.8], fill=body)
    draw.rectangle([wide * 0.28, high * 0.22, wide * 0.5, high * 0.7], fill=body)
    draw.rectangle([wide * 0.31, high * 0.27, wide * 0.47, high * 0.5], fill=(60, 72, 80))
    knee = (wide * rng.uniform(0.6, 0.8), high * rng.uniform(0.02, 0.25))
    hand = (wide * rng.uniform(0.85, 0.96), high * rng.uniform(0.45, 0.75))
    draw.line([(wide * 0.45, high * 0.6), knee, hand], fill=body, width=max(3, high // 11), joint="curve")
    bucket = high * 0.13
    draw.polygon(
        [
            (hand[0] - bucket, hand[1]),
            (hand[0] + bucket * 0.6, hand[1]),
            (hand[0], hand[1] + bucket * 1.6),
            (hand[0] - bucket, hand[1] + bucket),
        ],
        fill=(60, 58, 55),
    )
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return finish(image, rng, height_px)


def person(rng: Random, height_px: int, *, worker: bool = False) -> Image.Image:
    """Somebody on foot; a worker wears a vest with reflecting stripes and a helmet."""
    image, draw, wide, high = canvas(height_px, rng.uniform(0.3, 0.42))
    vest = hsv(rng, rng.choice(((0.02, 0.08), (0.15, 0.24))), (0.75, 1), (0.8, 1)) if worker else any_colour(rng)
    trousers = hsv(rng, (0, 1), (0, 0.5), (0.08, 0.5))
    stride = rng.uniform(0.02, 0.16) * wide
    for side in (-1, 1):
        draw.line(
            [wide * 0.5, high * 0.5, wide * 0.5 + side * stride, high * 0.98], fill=trousers, width=max(2, wide // 6)
        )
        draw.line(
            [wide * (0.5 + side * 0.2), high * 0.24, wide * (0.5 + side * 0.3), high * 0.5],
            fill=vest,
            width=max(2, wide // 8),
        )
    draw.rounded_rectangle([wide * 0.28, high * 0.18, wide * 0.72, high * 0.56], radius=wide * 0.1, fill=vest)
    skin = hsv(rng, (0.04, 0.09), (0.3, 0.6), (0.3, 0.9))
    draw.ellipse([wide * 0.36, 0, wide * 0.64, high * 0.16], fill=skin)
    if worker:
        draw.rectangle([wide * 0.28, high * 0.42, wide * 0.72, high * 0.46], fill=WHITE)
        for x in (0.36, 0.6):
            draw.rectangle([wide * x, high * 0.18, wide * (x + 0.05), high * 0.44], fill=WHITE)
        draw.pieslice(
            [wide * 0.33, -high * 0.02, wide * 0.67, high * 0.15],
            180,
            360,
            fill=hsv(rng, (0.08, 0.16), (0, 1), (0.8, 1)),
        )
    return finish(image, rng, height_px)


def flagger(rng: Random, height_px: int) -> Image.Image:
    """A road worker."""
    return person(rng, height_px, worker=True)


def mesh_fence(rng: Random, height_px: int) -> Image.Image:
    """Orange plastic mesh between posts; one can see through it."""
    image, draw, wide, high = canvas(height_px, rng.uniform(1.5, 4.0))
    body = safety_orange(rng)
    pitch = max(4, high // rng.randint(8, 16))
    for y in range(0, high, pitch):
        draw.line([0, y, wide, y + rng.uniform(-2, 2)], fill=body, width=max(1, pitch // 2))
    for x in range(0, wide, pitch):
        draw.line([x, 0, x, high], fill=body, width=max(1, pitch // 3))
    for x in range(0, wide, max(20, high)):
        draw.line([x, 0, x, high], fill=GREY, width=max(2, high // 20))
    return finish(image, rng, height_px)


#: What makes a scene roadwork, with how often each is drawn.
ROADWORK: dict[Painter, int] = {
    cone: 10, drum: 4, tube: 3, barricade: 3, water_barrier: 3, diamond_sign: 3,
    arrow_board: 1, excavator: 1, flagger: 1, mesh_fence: 1,
}  # fmt: skip
