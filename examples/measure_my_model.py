"""Train a plain PyTorch model, and measure it over a DataLoader.

python -m examples.measure_my_model
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import plots
from archs import LIF
from fisher import measure


class MyModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.neurons, self.readout = nn.Linear(64, 100), LIF(), nn.Linear(100, 10)

    def forward(self, x):  # (N, 64) -> (T, N, 10)
        return self.readout(self.neurons(self.hidden(x).expand(8, -1, -1)))  # T = 8


def main(path="my_model.png", epochs=20):
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    digits = TensorDataset(torch.tensor(images).float() / 4, torch.tensor(labels))
    model = MyModel()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for x, y in epochs * list(DataLoader(digits, batch_size=64, shuffle=True)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x).mean(0), y).backward()
        optimizer.step()
    measured = measure(model.eval(), DataLoader(digits, batch_size=64), samples=256)
    print(f"IC {measured.ic:.2f}, {plots.fisher([measured.line()], path)}")


if __name__ == "__main__":
    main()
