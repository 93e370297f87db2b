"""The figure of robustness: accuracy under corruptions and attacks."""

from itertools import cycle
from pathlib import Path

import drawing
from drawing import COLOURS, Figure, label
from utils import ROBUSTNESS_FILE, BadInput, read_lines


def accuracy_figure(folder):
    """Draw figures/robustness.png: accuracy against the strength of attacks, noise and blur, and
    after each timestep. Each network has a colour. Returns the path. Raises BadInput without lines.
    """
    networks = {}
    for line in read_lines(Path(folder) / ROBUSTNESS_FILE):
        networks.setdefault(line["checkpoint"], []).append(line)
    if not networks:
        raise BadInput(f"{folder} has no line in {ROBUSTNESS_FILE}")
    figure = Figure(figsize=(10, 7), layout="constrained")
    attack, noise, blur, prefixes = figure.subplots(2, 2, sharey=True).flat
    draw_threat(attack, networks, "pgd", "-")
    draw_threat(attack, networks, "fgsm", "--")
    draw_threat(noise, networks, "gaussian_noise", "-")
    draw_threat(blur, networks, "blur", "-")
    draw_attacked_prefixes(prefixes, networks)
    attack.set(xlabel="eps (1/255)", title="PGD (dashed: FGSM)", ylim=(0, 1.03))
    noise.set(xlabel="standard deviation", title="Gaussian noise")
    blur.set(xlabel="standard deviation (pixels)", title="Gaussian blur")
    figure.supylabel("accuracy (95 % interval)", fontsize=10)
    handles, names = attack.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", fontsize=8)
    return drawing.write(figure, Path(folder) / "figures" / "robustness.png")


def lines_of(threat, lines):
    """The lines of robustness.jsonl about that threat."""
    return [line for line in lines if line["threat"] == threat]


def draw_threat(axis, networks, threat, style):
    """Accuracy of each network against the strength of a threat; 0 is clean. If the attack was on a
    prefix, it is the accuracy after this prefix."""
    for lines, colour in zip(networks.values(), cycle(COLOURS)):
        clean, attacked = lines_of("clean", lines)[0], lines_of(threat, lines)
        prefix = attacked[0]["prefix"] if attacked else None
        last = (prefix or clean["timestep"]) - 1
        strengths = [0, *(line["strength"] for line in attacked)]
        accuracy = [line["accuracy"][last] for line in (clean, *attacked)]
        low, high = zip(*(line["accuracy_ci"][last] for line in (clean, *attacked)))
        name = label(clean) if style == "-" else None
        axis.plot(strengths, accuracy, style, marker="o", ms=3, color=colour, label=name)
        axis.fill_between(strengths, low, high, color=colour, alpha=0.15, lw=0)


def draw_attacked_prefixes(axis, networks):
    """Accuracy after each timestep: clean, and under PGD of the middle strength (dotted)."""
    attacks = [line for lines in networks.values() for line in lines_of("pgd", lines)]
    strengths = sorted({line["strength"] for line in attacks})
    middle = strengths[len(strengths) // 2] if strengths else 0
    for lines, colour in zip(networks.values(), cycle(COLOURS)):
        clean = lines_of("clean", lines)[0]
        steps = range(1, clean["timestep"] + 1)
        axis.plot(steps, clean["accuracy"], color=colour)
        for line in lines_of("pgd", lines):
            if line["strength"] == middle:
                axis.plot(steps, line["accuracy"], ":", color=colour)
    axis.set(xlabel="timesteps t", title=f"After t steps (dotted: PGD, eps {middle:g})")
