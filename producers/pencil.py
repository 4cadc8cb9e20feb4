"""How sprites.py and distractors.py draw: colours, round bodies, striped boards, shading, view angle.

A painter takes (rng, height_px) and gives an RGBA picture of that height, cut to its outline. It draws at twice
the size, shades, tilts and shrinks, so that edges are soft as in a photo.
"""

import colorsys
from collections.abc import Callable, Mapping
from random import Random

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Painter = Callable[[Random, int], Image.Image]
Band = tuple[float, float, Colour]

#: Drawn this many times larger than asked for, but never higher than MAX_DRAWN_PX.
OVERSAMPLING = 2
MAX_DRAWN_PX = 200

WHITE: Colour = (236, 234, 228)
BLACK: Colour = (24, 24, 26)
GREY: Colour = (120, 120, 122)


def hsv(rng: Random, hue: tuple[float, float], saturation: tuple[float, float], value: tuple[float, float]) -> Colour:
    """A colour drawn from ranges of hue, saturation and value, all in [0, 1]."""
    r, g, b = colorsys.hsv_to_rgb(rng.uniform(*hue) % 1.0, rng.uniform(*saturation), rng.uniform(*value))
    return int(r * 255), int(g * 255), int(b * 255)


def safety_orange(rng: Random) -> Colour:
    """From worn red plastic to fluorescent orange."""
    return hsv(rng, (-0.02, 0.085), (0.7, 1.0), (0.6, 1.0))


def any_colour(rng: Random) -> Colour:
    """Any colour of paint."""
    return hsv(rng, (0, 1), (0, 0.9), (0.1, 1))


def canvas(height_px: int, aspect: float) -> tuple[Image.Image, ImageDraw.ImageDraw, int, int]:
    """An empty picture to draw on, its pen, and its width and height; aspect is width by height."""
    high = max(12, min(height_px * OVERSAMPLING, MAX_DRAWN_PX))
    wide = max(4, round(high * aspect))
    image = Image.new("RGBA", (wide, high))
    return image, ImageDraw.Draw(image), wide, high


def finish(image: Image.Image, rng: Random, height_px: int, *, round_shading: bool = False) -> Image.Image:
    """Shades, views from a random angle, cuts to the outline and shrinks to ``height_px``."""
    wide, high = image.size
    pixels = np.asarray(image).astype(np.float32)
    light_x = rng.uniform(-0.8, 0.8)
    across = np.linspace(-1, 1, wide, dtype=np.float32)
    fall = rng.uniform(0.15, 0.5) * np.abs(across - light_x) ** (2 if round_shading else 1) / (1 + abs(light_x))
    down = 1 - rng.uniform(0, 0.3) * np.linspace(0, 1, high, dtype=np.float32)
    pixels[..., :3] *= ((1 - fall)[None, :] * down[:, None])[..., None]
    if rng.random() < 0.5:  # dirt
        coarse = np.frombuffer(rng.randbytes(64), dtype=np.uint8).reshape(8, 8)
        dirt = np.asarray(Image.fromarray(coarse).resize((wide, high), Image.Resampling.BICUBIC), dtype=np.float32)
        pixels[..., :3] *= (1 - rng.uniform(0, 0.35) * dirt / 255)[..., None]
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    dx, dy = 0.06 * wide, 0.04 * high
    corners = ((0, 0), (0, high), (wide, high), (wide, 0))
    quad = tuple(v for x, y in corners for v in (x + rng.uniform(-dx, dx), y + rng.uniform(-dy, dy)))
    image = image.transform((wide, high), Image.Transform.QUAD, quad, Image.Resampling.BILINEAR)
    if rng.random() < 0.4:
        image = image.rotate(rng.gauss(0, 4), Image.Resampling.BILINEAR, expand=True)
    box = image.getchannel("A").point(lambda a: 255 if a > 40 else 0).getbbox()
    image = image.crop(box) if box else image
    width_px = max(2, round(image.width * height_px / image.height))
    return image.resize((width_px, max(2, height_px)), Image.Resampling.BOX, reducing_gap=2.0)


def revolve(
    draw: ImageDraw.ImageDraw,
    axis_x: float,
    y: tuple[float, float],
    half: tuple[float, float],
    bands: list[Band],
    *,
    bend: float,
) -> None:
    """A round body from y[0] (half-width half[0]) down to y[1]; bands: (from, to, colour), in shares of its height."""

    def edge(t: float, *, back: bool) -> list[tuple[float, float]]:
        width = half[0] + (half[1] - half[0]) * t
        level = y[0] + (y[1] - y[0]) * t
        points = [(axis_x + u / 4 * width, level + bend * width * (1 - (u / 4) ** 2)) for u in range(-4, 5)]
        return points[::-1] if back else points

    for start, end, colour in bands:
        draw.polygon(edge(start, back=False) + edge(end, back=True), fill=colour)


def ring_bands(rng: Random, body: Colour, stripe: Colour, count: int, between: tuple[float, float]) -> list[Band]:
    """A body with ``count`` rings of another colour between two shares of its height."""
    first, last = between
    bands: list[Band] = [(0.0, 1.0, body)]
    step = (last - first) / max(count, 1)
    share = rng.uniform(0.4, 0.65)
    bands += [(first + i * step, first + (i + share) * step, stripe) for i in range(count)]
    return bands


def striped_board(size: tuple[int, int], colours: tuple[Colour, Colour], pitch_px: float, lean: float) -> Image.Image:
    """A board of slanting stripes; lean is the sideways shift over its height, in heights."""
    board = Image.new("RGBA", size, (*colours[1], 255))
    draw = ImageDraw.Draw(board)
    shift = lean * size[1]
    x = -abs(shift) - pitch_px
    while x < size[0] + abs(shift):
        draw.polygon(
            [(x, 0), (x + pitch_px / 2, 0), (x + pitch_px / 2 + shift, size[1]), (x + shift, size[1])], fill=colours[0]
        )
        x += pitch_px
    return board


def pick(rng: Random, painters: Mapping[Painter, int]) -> Painter:
    """One painter, by weight."""
    return rng.choices(list(painters), list(painters.values()))[0]
