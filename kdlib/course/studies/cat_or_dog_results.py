"""What the cat-or-dog study found, as text."""

from collections.abc import Mapping

from kdlib.metrics import interval

__all__ = ["report"]


def report(results: Mapping) -> str:
    """A table for each situation, and the verdicts."""
    described = {k: f"{v:.4f}" if isinstance(v, float) else v for k, v in results["data"].items()}
    lines = ["data: " + ", ".join(f"{k} {v}" for k, v in described.items())]
    for name, teacher in results["teachers"].items():
        lines.append(f"teacher, {name}: {100 * teacher['accuracy']:.1f} % after {teacher['epochs']} epochs, "
                     f"ECE {100 * teacher['ece']:.1f} %")  # fmt: skip
    for situation, arms in results["arms"].items():
        chosen = results["chosen"]["few" if situation == "few" else "all"]
        head = f"{'':26}{'accuracy (%)':>16}{'NLL (nats)':>12}{'ECE (%)':>9}{'rescaled':>10}{'agreement':>11}"
        lines += ["", f"{situation}: T = {chosen['temperature']:g}, alpha = {chosen['alpha']:g}", head]
        for arm, column in arms.items():
            mean, half = interval(column["accuracy"])
            nll, ece, rescaled, agreement = (
                sum(column[name]) / len(column[name]) for name in ("nll", "ece", "ece_rescaled", "agreement")
            )
            lines.append(f"{arm:26}{100 * mean:9.2f} ± {100 * half:4.2f}{nll:12.3f}{100 * ece:9.1f}"
                         f"{100 * rescaled:10.1f}{100 * agreement:11.1f}")  # fmt: skip
        for pair, verdict in results["verdicts"][situation].items():
            lines += [f"\n{pair}", verdict["text"]]
    return "\n".join(lines)
