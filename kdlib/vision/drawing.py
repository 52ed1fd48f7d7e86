"""A cat's or dog's face drawn from numbers: signed distances turned into anti-aliased paint.

Every shape is a signed distance d(u, v), in units of the picture: negative inside, positive outside. A shape
covers 1/2 − d/w of a pixel of width w, clipped to [0, 1]: exact for a straight edge along the grid, and close
for others as long as the shape is larger than a pixel. Thinner strokes are drawn one pixel wide and fainter.
Layers are painted back to front. Ears, eyes and whiskers come in pairs, drawn once in the coordinate |u|.

Source of the distances: I. Quilez, "2D distance functions", https://iquilezles.org/articles/distfunctions2d.
"""

from collections.abc import Mapping
from math import pi

import torch
from torch import Tensor

# Colours, as rows of (red, green, blue) in [0, 1].
FUR = ((0.88, 0.58, 0.30), (0.62, 0.62, 0.66), (0.55, 0.39, 0.27), (0.93, 0.84, 0.68),
       (0.36, 0.34, 0.36), (0.95, 0.94, 0.92), (0.78, 0.66, 0.50), (0.72, 0.46, 0.28))  # fmt: skip
IRIS = ((0.55, 0.72, 0.28), (0.93, 0.71, 0.22), (0.46, 0.68, 0.86), (0.62, 0.40, 0.20))
GROUND = ((0.62, 0.79, 0.89), (0.71, 0.85, 0.66), (0.95, 0.80, 0.66), (0.83, 0.75, 0.90),
          (0.55, 0.63, 0.60), (0.90, 0.88, 0.80), (0.45, 0.52, 0.68), (0.74, 0.58, 0.52))  # fmt: skip
OCCLUDER = ((0.36, 0.55, 0.27), (0.68, 0.30, 0.26), (0.28, 0.38, 0.60), (0.80, 0.72, 0.40))
WHITE, PINK, TONGUE, DARK = (1.0, 1.0, 1.0), (0.93, 0.66, 0.66), (0.93, 0.45, 0.50), (0.10, 0.08, 0.08)

Number = Tensor | float
Colour = Tensor | tuple[float, float, float]
Columns = Mapping[str, Tensor]


def coverage(distance: Tensor, pixel: Number) -> Tensor:
    """Share of each pixel that a shape covers, in [0, 1], from its signed distance; `pixel` is its width."""
    return (0.5 - distance / pixel).clamp(0, 1)


def ellipse(u: Tensor, v: Tensor, a: Number, b: Number) -> Tensor:
    """Distance to an ellipse of half-axes a and b about the origin; first order, exact on the outline."""
    x, y = u / a, v / b
    square = x * x + y * y
    # (|f| − 1)·|f| / |∇f| would be 0/0 at the centre; the small number only matters there.
    slope = torch.sqrt((x / a) ** 2 + (y / b) ** 2 + 1e-9)
    return (square - square.sqrt()) / slope


def tapered_capsule(u: Tensor, v: Tensor, du: Tensor, dv: Tensor, start: Number, end: Number) -> Tensor:
    """Distance to a round-ended stroke from the origin to (du, dv) of a radius from `start` to `end`."""
    square = du * du + dv * dv + 1e-9
    along = ((u * du + v * dv) / square).clamp(0, 1)
    x, y = u - along * du, v - along * dv
    # Sides that taper lie closer to the point than the perpendicular says, by the cosine of the taper.
    cosine = (square / (square + (end - start) ** 2)).sqrt()
    return (torch.sqrt(x * x + y * y) - (start + (end - start) * along)) * cosine


def paint_faces(attribute: Columns, nuisance: Columns, size: int) -> Tensor:
    """One face, (B, 3, size, size) float32 in [0, 1], for each row of columns as `sketches` has them."""
    # Parameters become columns (B, 1), against pixels (1, size²).
    look = {name: (value[:, None] + 1) / 2 for name, value in attribute.items()}
    free = {name: value[:, None] for name, value in nuisance.items()}
    centres = (torch.arange(size, dtype=torch.float32) + 0.5) * (2 / size) - 1
    x, y = centres.repeat(size)[None], centres.repeat_interleave(size)[None]

    canvas = _background(x, y, free)
    u, v, pixel = _posed(x, y, free, 2 / size)
    face = _Face(canvas, u, v, pixel, look, free)
    face.head_and_ears()
    face.markings()
    face.front_of_ears()
    face.layer(face.snout + 0.01, 0.45 * face.fur + 0.53)
    face.eyes()
    face.nose_and_mouth()
    face.whiskers()
    _occlude(canvas, x, y, 2 / size, free)
    _light_and_noise(canvas, x, y, free)
    return canvas.clamp_(0, 1).view(-1, 3, size, size)


class _Face:
    """The layers of a face, in the coordinates (u, v) of an upright one: v downwards, height about 1.5."""

    def __init__(self, canvas: Tensor, u: Tensor, v: Tensor, pixel: Tensor, look: Columns, free: Columns):
        self.canvas, self.u, self.v, self.pixel, self.look, self.free = canvas, u, v, pixel, look, free
        # What lies in front of the head shifts against it when the head turns or nods.
        self.front_u = u - 0.14 * (free["turn"] - 0.5)
        self.front_v = v - 0.10 * (free["nod"] - 0.5)
        self.front_side = self.front_u.abs()
        self.fur = _colour(FUR, free["fur"]) * (0.88 + 0.24 * free["fur shade"][..., None])
        self.line = self.fur * 0.22

    def between(self, name: str, cat: float, dog: float) -> Tensor:
        return cat + (dog - cat) * self.look[name]

    def layer(self, distance: Tensor, colour: Colour, opacity: Number = 1, rim: Number | None = None) -> None:
        """A shape, over a darker rim of this width if there is one."""
        if rim is not None:
            self.layer(distance - rim, self.line, opacity)
        _over(self.canvas, coverage(distance, self.pixel) * opacity, colour)

    def stroke(self, distance: Tensor, width: float, colour: Colour, opacity: float = 1.0) -> None:
        """A line of this width where the distance is 0; below a pixel's width fainter instead of thinner."""
        drawn = self.pixel.clamp(min=width)
        self.layer(distance.abs() - drawn / 2, colour, width / drawn * opacity)

    def head_and_ears(self) -> None:
        a, b, v = self.between("head", 0.60, 0.47), self.between("head", 0.50, 0.60), self.v - 0.08
        self.head = ellipse(self.u, v, a, b)

        # One stroke that swings from upright to hanging, and from a point to a round lobe. Half-way it is
        # short, as an ear that points at the viewer looks.
        angle, way = self.between("ears", 0.30, 2.85), self.look["ears"]
        length = self.between("ears", 0.46, 0.56) - 0.88 * way * (1 - way)
        ear_u = self.u.abs() - self.between("ears", 0.60, 0.80) * a
        ear_v = v + self.between("ears", 0.66, 0.62) * b
        root, end = self.between("ears", 0.21, 0.12), self.between("ears", 0.015, 0.19)
        self.ear = tapered_capsule(ear_u, ear_v, length * angle.sin(), -length * angle.cos(), root, end)
        # The muzzle may reach below the chin.
        self.muzzle_height = self.between("muzzle", 0.12, 0.27)
        self.muzzle_v = self.front_v - self.between("muzzle", 0.27, 0.36)
        lobe = self.front_side - self.between("muzzle", 0.10, 0.05)
        self.snout = ellipse(lobe, self.muzzle_v, self.between("muzzle", 0.13, 0.22), self.muzzle_height)
        outline = torch.minimum(torch.minimum(self.head, self.ear), self.snout)
        self.layer(outline, self.fur, rim=0.025)

    def markings(self) -> None:
        """Stripes on the forehead, a patch over one eye, or a blaze; a fifth of the faces have none."""
        kind, v = self.free["marking"], self.front_v
        u = torch.where(self.free["marking side"] > 0.5, self.front_u, -self.front_u)
        stripes = (self.front_side - 0.13).abs().minimum(self.front_side) - 0.025
        stripes = torch.maximum(stripes, (v + 0.29).abs() - 0.11)
        patch = ellipse(u - 0.25, v + 0.05, 0.21, 0.24)
        blaze = ellipse(u, v + 0.10, 0.10, 0.42)
        shape = torch.where(kind < 0.45, stripes, torch.where(kind < 0.75, patch, blaze))
        colour, present = _colour(FUR, self.free["marking colour"]), (kind > 0.22).float()
        self.layer(torch.maximum(shape, self.head + 0.02), colour, present * 0.85)

    def front_of_ears(self) -> None:
        # Upright: a pink hollow. Hanging: the whole ear lies in front of the head, darker and outlined.
        hanging = self.look["ears"]
        shade = ((hanging - 0.25) * 2).clamp(0, 1)
        self.layer(self.ear, self.fur * 0.72, shade, rim=0.025)
        hollow = torch.maximum(self.ear + 0.065, -self.head + 0.01)
        self.layer(hollow, PINK, (1 - 1.4 * hanging).clamp(0, 1))

    def eyes(self) -> None:
        u, v = self.front_side - 0.24, self.front_v + 0.04
        ball = ellipse(u, v, 0.125, 0.115)
        self.layer(ball, _colour(IRIS, self.free["iris"]), rim=0.022)
        self.layer(ellipse(u, v, self.between("pupils", 0.018, 0.10), 0.098), DARK)
        # Both highlights on the same side, where the light comes from.
        shine = self.front_u - self.front_u.sign() * 0.24 + 0.035
        self.layer(torch.sqrt(shine**2 + (v + 0.04) ** 2) - 0.028, WHITE, 0.95)

    def nose_and_mouth(self) -> None:
        side, size = self.front_side, self.between("nose", 0.050, 0.115)
        v = self.muzzle_v + 0.62 * self.muzzle_height
        mouth = v - size - 0.05  # zero at the height where the lips part
        # The tongue hangs from the lips; a cat shows its tip at most.
        out = self.look["tongue"]
        width = 0.085 * out
        tongue = tapered_capsule(side, mouth - 0.03, torch.zeros_like(out), 0.16 * out, width, width)
        self.layer(tongue, TONGUE, (4 * out).clamp(max=1), rim=0.018 * out)
        # Lips: half circles left and right; a line up to the nose.
        lips = (torch.sqrt((side - 0.085) ** 2 + mouth**2) - 0.085).abs()
        corner = torch.sqrt((side - 0.17) ** 2 + mouth**2)
        lips = torch.where(mouth > 0, lips, corner)
        line = torch.maximum(side, (mouth + 0.04).abs() - 0.04)
        self.stroke(torch.minimum(lips, line.clamp(min=0)), 0.026, DARK)
        # A rounded triangle that points down.
        slant, top = 0.8 * side + 0.6 * v - 0.35 * size, -v - 0.25 * size
        nose = torch.sqrt(slant.clamp(min=0) ** 2 + top.clamp(min=0) ** 2) - 0.45 * size
        nose = nose + torch.maximum(slant, top).clamp(max=0)
        self.layer(nose, _colour((DARK, (0.28, 0.18, 0.16), (0.80, 0.45, 0.45)), self.free["nose colour"]))

    def whiskers(self) -> None:
        length = self.between("whiskers", 0.50, 0.04)
        u, v = self.front_side - 0.15, self.muzzle_v + 0.10 * self.muzzle_height
        three = [
            tapered_capsule(u, v - start, length, slope * length, 0.0, 0.0)
            for slope, start in ((-0.30, -0.05), (0.0, 0.0), (0.30, 0.05))
        ]
        nearest = torch.stack(three).amin(0)
        # Dark whiskers on light fur and light ones on dark fur.
        bright = self.fur.mean(dim=-1, keepdim=True)
        self.stroke(nearest, 0.020, torch.where(bright < 0.5, 0.95, 0.12).expand_as(self.fur), 0.9)


def _posed(x: Tensor, y: Tensor, free: Columns, width: float) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels in the coordinates of the upright face, and the width of a pixel there."""
    angle = (free["rotation"] - 0.5) * (80 / 180 * pi)
    scale = 0.92 + 0.28 * (free["scale"] - 0.5)
    x, y = x - 0.24 * (free["right"] - 0.5), y - 0.24 * (free["down"] - 0.5)
    return *_turned(x, y, angle, scale), width / scale


def _turned(x: Tensor, y: Tensor, angle: Tensor, scale: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
    """Coordinates along the direction `angle` and across it, in units of `scale`."""
    cosine, sine = angle.cos() / scale, angle.sin() / scale
    return cosine * x + sine * y, cosine * y - sine * x


def _background(x: Tensor, y: Tensor, free: Columns) -> Tensor:
    """Two colours that run into one another in waves: (B, 3, pixels)."""
    first, second = _colour(GROUND, free["ground"]), _colour(GROUND, free["second ground"])
    angle, wave = free["ground angle"] * (2 * pi), 0.5 + 9 * free["ground wave"]
    across, along = _turned(x, y, angle)
    mix = 0.5 + 0.5 * torch.sin(wave * across + 6 * free["ground phase"] + torch.sin(2 * along + angle))
    return torch.lerp(first.transpose(1, 2), second.transpose(1, 2), mix[:, None])


def _occlude(canvas: Tensor, x: Tensor, y: Tensor, pixel: float, free: Columns) -> None:
    """A bar, a leaf or a ball before the face, of a size that may be 0."""
    big, kind = free["occluder"], free["occluder kind"]
    x, y = x - 1.3 * (free["occluder right"] - 0.5), y - 1.3 * (free["occluder down"] - 0.5)
    along, across = _turned(x, y, free["occluder angle"] * pi)
    bar = across.abs() - 0.13 * big
    # A leaf is what two equal circles have in common.
    leaf = torch.sqrt(along**2 + (across.abs() + 0.36 * big) ** 2) - 0.64 * big
    ball = torch.sqrt(along**2 + across**2) - 0.34 * big
    shape = torch.where(kind < 0.33, bar, torch.where(kind < 0.67, leaf, ball))
    colour = _colour(OCCLUDER, free["occluder colour"])
    for rim, shade in ((0.03, 0.5), (0.0, 1.0)):
        _over(canvas, coverage(shape - rim, pixel) * (big > 0).float(), colour * shade)


def _light_and_noise(canvas: Tensor, x: Tensor, y: Tensor, free: Columns) -> None:
    slope, _ = _turned(x, y, free["light angle"] * (2 * pi))
    light = (1 + 0.7 * (free["brightness"] - 0.5)) * (1 + 0.35 * free["shadow"] * (slope - 0.5))
    canvas.mul_(light[:, None])
    canvas.add_(_grain(free["grain"], canvas.shape[-1]) * (0.11 * free["noise"])[:, None])


def _grain(seed: Tensor, pixels: int) -> Tensor:
    """(B, 3, pixels) triangular noise in (−1, 1), mean 0, the same for each picture whatever its batch."""
    start = (seed * 2**24).to(torch.int64)[:, :, None]
    # A 32-bit finaliser (constants of Wellons' "lowbias32"), in int64 so that no product overflows its sign.
    h = torch.arange(3 * pixels).view(1, 3, pixels) * 0x9E3779B1 + start * 0x85EBCA77
    h = h & 0xFFFFFFFF
    h = ((h ^ (h >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    h = ((h ^ (h >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    h = h ^ (h >> 16)
    return ((h & 0xFFFF) + (h >> 16)).float() / 65535 - 1


def _colour(palette: tuple, choice: Tensor) -> Tensor:
    """The colour (B, 1, 3) that a number (B, 1) in [0, 1] picks from a palette."""
    return torch.tensor(palette)[(choice * len(palette)).long().clamp(max=len(palette) - 1)]


def _over(canvas: Tensor, opacity: Tensor, colour: Colour) -> None:
    """Paint a colour onto (B, 3, pixels) with an opacity (B, pixels)."""
    if not isinstance(colour, Tensor):
        colour = torch.tensor(colour).view(1, 1, 3)
    canvas.lerp_(colour.transpose(1, 2), opacity[:, None])
