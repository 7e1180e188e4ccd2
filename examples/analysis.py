"""A hundred lines of ordinary analysis: a damped oscillation is measured with noise, fitted, checked and drawn."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

RNG = np.random.default_rng(7)
TRUE_AMPLITUDE, TRUE_DECAY, TRUE_FREQUENCY = 2.0, 0.35, 1.7
NOISE = 0.15


@dataclass
class Fit:
    amplitude: float
    decay: float
    frequency: float
    residual: float
    steps: int


def model(p: np.ndarray, t: np.ndarray) -> np.ndarray:
    amplitude, decay, frequency = p
    return np.asarray(amplitude * np.exp(-decay * t) * np.cos(2 * np.pi * frequency * t))


def jacobian(p: np.ndarray, t: np.ndarray) -> np.ndarray:
    amplitude, decay, frequency = p
    envelope = np.exp(-decay * t)
    phase = 2 * np.pi * frequency * t
    return np.column_stack(
        [
            envelope * np.cos(phase),
            -amplitude * t * envelope * np.cos(phase),
            -amplitude * envelope * np.sin(phase) * 2 * np.pi * t,
        ]
    )


def first_guess(t: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The frequency from the spectrum, the rest from the first values."""
    spectrum = np.abs(np.fft.rfft(y - y.mean()))
    frequencies = np.fft.rfftfreq(len(t), d=t[1] - t[0])
    return np.array([np.abs(y[:20]).max(), 0.5, frequencies[spectrum[1:].argmax() + 1]])


def fit(t: np.ndarray, y: np.ndarray, steps: int = 200) -> Fit:
    """Levenberg and Marquardt's method, by hand."""
    p, damping, done = first_guess(t, y), 1e-2, 0
    error = float(np.sum((y - model(p, t)) ** 2))
    for _ in range(steps):
        done += 1
        j, r = jacobian(p, t), y - model(p, t)
        normal = j.T @ j
        step = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), j.T @ r)
        tried = float(np.sum((y - model(p + step, t)) ** 2))
        if tried < error:
            gain, p, error, damping = error - tried, p + step, tried, damping / 3
            if gain < 1e-12:
                break
        else:
            damping *= 4
    return Fit(float(p[0]), float(p[1]), float(p[2]), residual=float(np.sqrt(error / len(t))), steps=done)


def bootstrap(t: np.ndarray, y: np.ndarray, best: Fit, rounds: int = 60) -> dict[str, float]:
    """How far the fit moves when the noise is drawn again."""
    p = np.array([best.amplitude, best.decay, best.frequency])
    fits = [fit(t, model(p, t) + RNG.normal(0, best.residual, len(t))) for _ in range(rounds)]
    return {name: float(np.std([getattr(f, name) for f in fits])) for name in ("amplitude", "decay", "frequency")}


def draw(t: np.ndarray, y: np.ndarray, best: Fit, path: str) -> None:
    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 6), sharex=True, height_ratios=[3, 1])
    curve = model(np.array([best.amplitude, best.decay, best.frequency]), t)
    above.plot(t, y, ".", markersize=3, color="#888", label="measured")
    above.plot(t, curve, color="#c33", label=f"fit: f = {best.frequency:.3f} Hz, decay = {best.decay:.3f} /s")
    above.set_ylabel("displacement")
    above.legend()
    below.plot(t, y - curve, ".", markersize=2, color="#369")
    below.set_xlabel("time (s)")
    below.set_ylabel("residual")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    time = np.linspace(0, 8, 800)
    measured = model(np.array([TRUE_AMPLITUDE, TRUE_DECAY, TRUE_FREQUENCY]), time) + RNG.normal(0, NOISE, len(time))
    found = fit(time, measured)
    spread = bootstrap(time, measured, found)
    draw(time, measured, found, "fit.png")
    Path("fit.json").write_text(json.dumps({"fit": asdict(found), "spread": spread}, indent=2))
    print(f"frequency {found.frequency:.4f} +- {spread['frequency']:.4f} Hz after {found.steps} steps")
