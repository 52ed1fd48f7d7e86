"""Drawn cats and dogs whose true class probability is known: data to hold a soft label against.

**The model.** A label y, cat (0) or dog (1), each with probability 1/2. Given y, each attribute k of the face
(shape of the ears, length of the muzzle, …) lies in [−1, 1], independently of the others, with density

    p(a | dog) ∝ exp(+λ_k a / 2),    p(a | cat) ∝ exp(−λ_k a / 2)

The two are mirror images with the same normalising constant, so that exactly

    log p(dog | a) − log p(cat | a) = Σ_k λ_k a_k                                       (1)

The Bayes classifier is a logistic regression on the attributes. Everything else about the picture (pose,
colours, light, background, what stands before the face, noise) is a nuisance, drawn independently of both.

**Whose truth it is.** (1) is the probability given the attributes; what can be known from a picture x is
p(dog | x) = E[p(dog | a) | x]. No classifier of pictures does better than `bayes_accuracy`. For any q(x)

    E[ KL(p(·|a) ‖ q(x)) ] = E[ KL(p(·|x) ‖ q(x)) ] + I(y; a | x)

where the last term, what the picture hides, is the same for all q. Comparing two models by their divergence
from (1) therefore compares them by their divergence from the unknown p(·|x), with less noise than labels do.

**Why such labels help.** Training on p(·|x) instead of on drawn labels has the same expected loss and a
lower variance: Menon et al. 2021, "A statistical perspective on distillation" (ICML, PMLR 139), §3.
`SketchExamples.true_logits` is that teacher for `kd_loss` at T = 1.
"""

import hashlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlib.arguments import check_number, check_room, check_whole
from kdlib.data import Examples, Splits
from kdlib.vision.drawing import paint_faces

# λ of equation (1) for each attribute, by what +1 looks like.
ATTRIBUTES = {
    "ears": 2.2,  # −1 pointed and upright … +1 round and hanging
    "muzzle": 2.2,  # short … long, reaching below the chin
    "head": 1.3,  # wide … long
    "nose": 1.0,  # small … large
    "pupils": 0.8,  # slit … round
    "whiskers": 0.8,  # long … almost none
    "tongue": 1.0,  # hidden … hanging out
}

# Each in [0, 1]. CENTRED ones are neutral at 1/2, AMOUNTS at 0, and `strength` scales both; CHOICES are of
# colours, patterns and places, and hide nothing.
CENTRED = ("rotation", "scale", "right", "down", "turn", "nod", "brightness")
AMOUNTS = ("occluder", "shadow", "noise")
CHOICES = (
    "fur", "fur shade", "marking", "marking colour", "marking side", "iris", "nose colour", "ground",
    "second ground", "ground angle", "ground wave", "ground phase", "light angle", "occluder kind",
    "occluder angle", "occluder right", "occluder down", "occluder colour", "grain",
)  # fmt: skip
NUISANCES = (*CENTRED, *AMOUNTS, *CHOICES)

OCCLUDED = 0.2  # share of the pictures with something in front of the face
BLOCK = 32 * 1024  # pixels drawn at a time: some forty float32 temporaries that should stay in a core's cache
_SLOPES = torch.tensor(tuple(ATTRIBUTES.values()), dtype=torch.float64)


@dataclass(frozen=True)
class SketchExamples(Examples):
    """Drawn faces, uint8 (N, 3, size, size), 0 cat and 1 dog, with what they were drawn from."""

    attributes: Tensor  # (N, 7) float32 in [−1, 1], the columns of `ATTRIBUTES`
    nuisances: Tensor  # (N, 29) float32 in [0, 1], the columns of `NUISANCES`
    log_odds: Tensor  # (N) float32, log P(dog | attributes) − log P(cat | attributes), equation (1)

    @property
    def posterior(self) -> Tensor:
        """(N, 2) float64 on the CPU: P(cat | attributes), P(dog | attributes)."""
        odds = self.log_odds.cpu().double()
        return torch.stack([torch.sigmoid(-odds), torch.sigmoid(odds)], dim=1)

    @property
    def true_logits(self) -> Tensor:
        """(N, 2) float32 log P(cat | attributes), log P(dog | attributes): a perfect teacher's logits."""
        return torch.stack([F.logsigmoid(-self.log_odds), F.logsigmoid(self.log_odds)], dim=1)

    @property
    def bayes_accuracy(self) -> float:
        """Mean of max P(y | a), in [0, 1]: the expected accuracy here of one who sees the attributes."""
        return self.posterior.amax(dim=1).mean().item()


def load_sketches(
    train: int = 2000, validation: int = 1000, test: int = 2000, *,
    size: int = 32, seed: int = 0, nuisance: float = 1.0,
) -> Splits:  # fmt: skip
    """`Splits` of `SketchExamples`, cats and dogs drawn now: nothing is downloaded.

    The first pictures of a part are the same whatever the sizes of the parts, and on every machine, to within
    rounding of a pixel value. A quarter of the faces have a true probability between 0.2 and 0.8. Accuracy
    (seed 0, nuisance 0.5, 4,000 test pictures): from attributes 86.6 %, a network of 72,000 parameters on
    3,000 pictures 84.0 %, one of 3,500 on the same 78.3 %, on 100 65 %.

    Args:
        train, validation, test: number of pictures.
        size: height and width in pixels, from 8 on.
        nuisance: from 0 (upright, nothing in front, no noise; colours still vary) to 1, or to 2 for harder.

    Raises:
        ValueError: a number that is out of these ranges, or more pictures than memory holds.
    """
    counts = {"train": train, "validation": validation, "test": test}
    check_whole("size", size, least=8)
    check_whole("seed", seed)
    for name, count in counts.items():
        check_whole(name, count, least=0)
        check_room(name, count, 3 * size**2 * count)

    def part(name: str, count: int) -> SketchExamples:
        labels = torch.randint(2, (count,), generator=_stream(seed, name, "labels"))
        attributes = sample_attributes(labels, _stream(seed, name, "attributes"))
        nuisances = sample_nuisances(count, _stream(seed, name, "nuisances"), strength=nuisance)
        images, odds = draw_sketches(attributes, nuisances, size), log_odds(attributes).float()
        return SketchExamples(images, labels, torch.arange(count), attributes, nuisances, odds)

    return Splits(part("train", train), part("validation", validation), part("test", test), ("cat", "dog"))


def sample_attributes(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Attributes (N, 7) float32 given labels (N), 0 or 1, by inverting the distribution function."""
    uniform = torch.rand(len(labels), len(_SLOPES), dtype=torch.float64, generator=generator)
    dog = torch.log1p(uniform * torch.expm1(_SLOPES)) * (2 / _SLOPES) - 1
    sign = 2 * labels.cpu().double()[:, None] - 1
    return (sign * dog).float()


def log_odds(attributes: Tensor) -> Tensor:
    """log P(dog | a) − log P(cat | a) = Σ_k λ_k a_k: (..., 7) attributes to (...) float64, on the CPU."""
    return attributes.cpu().double() @ _SLOPES


def sample_nuisances(count: int, generator: torch.Generator, *, strength: float = 1.0) -> Tensor:
    """What carries no class information: (count, 29) float32 in [0, 1], columns as in `NUISANCES`."""
    check_number("nuisance", strength)
    if not 0 <= strength <= 2:
        raise ValueError(f"nuisance must be between 0 and 2; got {strength!r}")
    uniform = torch.rand(count, len(NUISANCES), dtype=torch.float64, generator=generator)
    column = {name: uniform[:, k] for k, name in enumerate(NUISANCES)}
    for name in CENTRED:
        column[name] = 0.5 + strength * (column[name] - 0.5)
    # Most faces have nothing in front; the others an object of at least half its largest size.
    hidden = column["occluder"] - (1 - OCCLUDED)
    column["occluder"] = torch.where(hidden > 0, strength * (0.5 + 0.5 * hidden / OCCLUDED), 0.0)
    column["shadow"], column["noise"] = strength * column["shadow"], strength * column["noise"]
    return torch.stack([column[name] for name in NUISANCES], dim=1).float()


@torch.no_grad()
def draw_sketches(attributes: Tensor, nuisances: Tensor, size: int = 32) -> Tensor:
    """Draw faces, uint8 (N, 3, size, size), from (N, 7) in [−1, 1] and (N, 29) in [0, 1]."""
    check_whole("size", size, least=8)
    images = torch.empty(len(attributes), 3, size, size, dtype=torch.uint8)
    blocks = (each.split(max(1, BLOCK // size**2)) for each in (images, attributes, nuisances))
    for block, look, free in zip(*blocks, strict=True):
        look = dict(zip(ATTRIBUTES, look.float().unbind(1), strict=True))
        free = dict(zip(NUISANCES, free.float().unbind(1), strict=True))
        block.copy_(paint_faces(look, free, size).mul_(255).round_())
    return images


def morph(steps: int = 9, *, size: int = 128) -> tuple[Tensor, Tensor]:
    """One face from a certain cat to a certain dog: images (steps, 3, size, size), and P(dog | a) (steps).

    All attributes move together, a_k = t from −1 to +1, and nothing else does. The log-odds are linear in t:
    equal steps would show little but certainty. t = (s + s³) / 2 for equal steps of s dwells on the doubtful.
    """
    s = torch.linspace(-1, 1, steps, dtype=torch.float64)
    attributes = ((s + s**3) / 2)[:, None].repeat(1, len(ATTRIBUTES)).float()
    plain = torch.tensor([0.5 if name in CENTRED else 0.0 for name in NUISANCES])
    return draw_sketches(attributes, plain.repeat(steps, 1), size), torch.sigmoid(log_odds(attributes))


def _stream(seed: int, *name: str) -> torch.Generator:
    """A generator for one purpose: no two purposes, parts or seeds share random numbers."""
    digest = hashlib.sha256("/".join(("sketches", f"{seed:d}", *name)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
