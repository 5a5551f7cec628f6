"""A call in a CUDA graph gives what the function gives, or is not in one; on a CPU with a stand-in for the capture."""

import random
import warnings

import pytest
import torch
from torch import nn

from fmcefast.runtime.adam import fused_adam, moments, set_learning_rate
from fmcefast.runtime.graphed_call import GraphedCall

CUDA = torch.device("cuda")


class Training:
    """A small network with dropout and batch statistics, one step at a time."""

    def __init__(self, device="cpu"):
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))
        self.network.to(device)
        self.optimizer = fused_adam(self.network.parameters(), 1e-2, torch.device(device))
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)
        numbers = torch.Generator().manual_seed(1)
        self.batches = [torch.randn(6, 5, generator=numbers).to(device) for _ in range(9)]
        self.labels = torch.tensor([0, 1, 2, 0, 1, 2], device=device)

    def step(self, inputs, labels):
        loss = nn.functional.cross_entropy(self.network(inputs), labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.sums += torch.stack([loss.detach(), loss.new_ones(())])
        return loss.detach()

    def changed(self):
        parameters, buffers = list(self.network.parameters()), list(self.network.buffers())
        return [parameters, buffers, *moments(self.optimizer), [self.sums]]

    def run(self, call):
        """The losses of all batches, and what is left in all that changes."""
        torch.manual_seed(2)
        losses = []
        for number, batch in enumerate(self.batches):
            set_learning_rate(self.optimizer, 1e-2 / (1 + number))
            losses.append(float(call(batch, self.labels)))
        return losses, [tensor.cpu().clone() for group in self.changed() for tensor in group]


def assert_same(found, expected, tolerance=0.0):
    assert found[0] == pytest.approx(expected[0], rel=tolerance, abs=0)
    for ours, right in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(ours, right, rtol=tolerance, atol=tolerance)


def run_graphed(device=CUDA, of="cpu", **settings):
    """The result of a training in graphs, and its call."""
    training, call = Training(of), GraphedCall(device, "Training", **settings)
    return training.run(lambda *batch: call(training.step, *batch, changes=training.changed)), call


@pytest.fixture(scope="module")
def eager():
    training = Training()
    return training.run(training.step)


def test_a_graph_trains_as_the_function_does(gpu, eager):
    found, call = run_graphed()
    assert_same(found, eager)
    assert call.how == "in a CUDA graph" and call._gpu.replays == len(eager[0]) - 3


def test_there_is_no_graph_on_a_cpu_or_where_none_is_wanted(eager):
    for device, settings, why in (
        (torch.device("cpu"), {}, "on a CPU"),
        (CUDA, {"wanted": False, "obstacle": "several processes"}, "as requested"),
        (CUDA, {"obstacle": "several processes"}, "several processes"),
    ):
        found, call = run_graphed(device, **settings)
        assert_same(found, eager)
        assert call.how == f"without a CUDA graph ({why})" and not call.stay_eager("of no matter")


@pytest.mark.parametrize(
    "trouble, why",
    [
        ({"waits": True}, "it waits for a value from the GPU"),
        ({"refusal": RuntimeError("operation not permitted\nwhen the stream is capturing")}, "not permitted"),
        ({"refusal": torch.OutOfMemoryError("CUDA out of memory. Tried")}, "the GPU has too little memory for one"),
    ],
)
def test_what_cannot_be_captured_is_said_once_and_trains_on(gpu, eager, trouble, why):
    for name, value in trouble.items():
        setattr(gpu, name, value)
    with pytest.warns(RuntimeWarning) as warned:
        found, call = run_graphed()
    assert [why in str(one.message) for one in warned] == [True]
    assert str(warned[0].message).startswith("Training runs without a CUDA graph from here on: ")
    assert_same(found, eager)
    assert "without a CUDA graph" in call.how


@pytest.mark.parametrize("part", ["parameters", "buffers", "moments", "sums", "not a number"])
def test_a_graph_that_differs_is_not_used(gpu, eager, part):
    """Each time something else goes wrong in the graph alone; the training is the eager one all the same."""
    training, call = Training(), GraphedCall(CUDA, "Training")

    def spoil():
        with torch.no_grad():
            if part == "parameters":
                training.network[4].weight += 0.01
            elif part == "buffers":
                training.network[1].running_mean += 0.1
            elif part == "moments":
                training.optimizer.state[training.network[0].weight]["exp_avg"].zero_()
            elif part == "sums":
                training.sums += 1
            else:
                training.network[4].bias[0] = float("nan")

    gpu.spoil = staticmethod(spoil)
    with pytest.warns(RuntimeWarning, match="gave other results, by"):
        found = training.run(lambda *batch: call(training.step, *batch, changes=training.changed))
    assert_same(found, eager)


def test_stale_inputs_are_found_out(gpu, eager):
    """A graph that goes on with the batch it was captured with."""
    capture = gpu.capture
    stale = torch.ones(6, 5)
    gpu.capture = lambda self, function, *inputs: capture(self, lambda batch, labels: function(stale, labels), *inputs)
    with pytest.warns(RuntimeWarning, match="gave other results"):
        found, _ = run_graphed()
    assert_same(found, eager)


def test_another_shape_is_computed_without_the_graph(gpu, caplog):
    caplog.set_level("INFO", logger="fmcefast")
    call = GraphedCall(CUDA, "Scoring")
    network = nn.Linear(4, 2)
    for rows in (5, 3, 5, 5, 5, 5, 3, 5):
        batch = torch.randn(rows, 4)
        with torch.inference_mode():
            maps, nothing = call(lambda inputs: (network(inputs), None), batch)
            torch.testing.assert_close(maps, network(batch))
        assert nothing is None
    assert call._gpu.replays == 3
    assert caplog.messages == ["Scoring: batches of another shape run without the CUDA graph"]


def test_errors_of_the_function_are_its_own(gpu):
    call, fine = GraphedCall(CUDA, "Training"), [True] * 3 + [False]

    def step(inputs):
        if not fine.pop(0):
            raise ValueError("no such label")
        return inputs

    for _ in range(3):
        call(step, torch.ones(2))
    with pytest.raises(ValueError, match="no such label"), warnings.catch_warnings(action="error"):
        call(step, torch.ones(2))


def test_memory_is_given_up_for_what_needs_it(gpu):
    _, call = run_graphed()
    call.release()
    assert call._graph is None and call.how == "in a CUDA graph"
    for _ in range(5):
        call(lambda *batch: batch, torch.zeros(6, 5), torch.zeros(6, dtype=torch.int64))
    assert call._graph is not None
    with pytest.warns(RuntimeWarning, match="from here on: the GPU is full"):
        assert call.stay_eager("the GPU is full")
    assert call._graph is None and not call.stay_eager("again")


@pytest.mark.gpu
class TestOnAGpu:
    """What only a GPU shows."""

    @pytest.fixture(autouse=True)
    def repeatable(self, monkeypatch):
        monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)

    def test_a_graph_trains_as_the_function_does(self):
        training = Training("cuda")
        expected = training.run(training.step)
        found, call = run_graphed(of="cuda")
        assert call.how == "in a CUDA graph" and call._graph is not None
        assert_same(found, expected, tolerance=1e-4)

    def test_dropout_goes_on_from_a_seed(self):
        """What a graph draws follows from the seed alone, as it does without one."""
        torch.manual_seed(0)
        dropout, batch, call = nn.Dropout(), torch.ones(1000, device="cuda"), GraphedCall(CUDA, "Dropout")
        for _ in range(5):
            call(dropout, batch)
        for seed in (3, 4):
            torch.manual_seed(seed)
            expected = [dropout(batch), dropout(batch)]
            torch.manual_seed(seed)
            assert all(torch.equal(call(dropout, batch), values) for values in expected)
        assert call._graph is not None

    @pytest.mark.parametrize("what", ["value", "random", "copy"])
    def test_what_the_host_does_is_found_before_the_capture(self, what):
        dropout = nn.Dropout()

        def step(inputs):
            if what == "value" and inputs.sum() > 0:
                inputs = inputs * 2
            elif what == "random":
                inputs = inputs * random.random()
            else:
                inputs = inputs * torch.tensor([2.0]).to("cuda")
            return dropout(inputs)

        call, batch = GraphedCall(CUDA, "The step"), torch.ones(100, device="cuda")
        with pytest.warns(RuntimeWarning, match="it waits for a value|it draws random numbers") as warned:
            for _ in range(6):
                call(step, batch)
        assert len(warned) == 1 and torch.cuda.get_sync_debug_mode() == 0

    def test_an_invalid_capture_leaves_everything_as_it_was(self):
        """The call is an error in a capture only, after work that has been captured; dropout must go on afterwards."""
        dropout, batch, call = nn.Dropout(), torch.ones(1000, device="cuda"), GraphedCall(CUDA, "The step")

        def step(inputs):
            outputs = dropout(inputs)
            if torch.cuda.is_current_stream_capturing():
                outputs.sum().item()
            return outputs

        torch.manual_seed(3)
        expected = [dropout(batch) for _ in range(6)]
        torch.manual_seed(3)
        with pytest.warns(RuntimeWarning, match="without a CUDA graph from here on") as warned:
            found = [call(step, batch).clone() for _ in range(6)]
        assert len(warned) == 1
        assert all(torch.equal(ours, right) for ours, right in zip(found, expected, strict=True))
        another = GraphedCall(CUDA, "Another step")  # can still be captured
        for _ in range(6):
            another(dropout, batch)
        assert another._graph is not None

    def test_a_full_gpu_trains_without_a_graph(self):
        batch, call = torch.ones(1000, device="cuda"), GraphedCall(CUDA, "The step")

        def step(inputs):
            if torch.cuda.is_current_stream_capturing():
                torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
            return inputs * 2

        with pytest.warns(RuntimeWarning, match="too little memory"):
            outputs = [call(step, batch) for _ in range(6)]
        assert all(torch.equal(values, 2 * batch) for values in outputs)

    def test_memory_comes_back(self):
        batch = torch.ones(64 << 20, device="cuda")
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        call = GraphedCall(CUDA, "The step")
        for _ in range(5):
            call(lambda inputs: (inputs * 2).sum(), batch)
        assert call._graph is not None
        with pytest.warns(RuntimeWarning):
            call.stay_eager("of no matter")
        torch.cuda.empty_cache()
        assert torch.cuda.memory_allocated() <= before + (1 << 20)
