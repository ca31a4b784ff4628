"""A learning rule outside dtp_lightning: each stage is told the signs of its error, and one number for its size."""

from __future__ import annotations

from torch import Tensor

from dtp_lightning.learners import Learner, StageTrace


class SignedErrors(Learner):
    """delta_{i-1} = J_{f_i}^T s_i, s_i = sign(delta_i) * mean(|delta_i|): backprop of errors of one bit a unit.

    Args:
        model: stages and head.
        loss: the objective.
        forward_optimizer: see :class:`dtp_lightning.learners.Learner`.
    """

    transports_weights = True  # the forward weights travel back in trace.vjp(..., to_input=True)
    needs_input_gradients = True  # so traces keep the graph to their input

    def compute_gradients(self, traces: list[StageTrace], top: Tensor, *, measure: bool) -> dict[str, Tensor]:
        """Write the gradient of each stage, from the top down.

        Args:
            traces: stages 1..L on this batch, bottom first.
            top: dL/dh_L, (N, C, H, W).
            measure: whether to compute what is only logged.

        Returns:
            Scalars to log, by name: the size that stage 1 is told.
        """
        delta: Tensor | None = top
        for trace in reversed(traces):
            assert delta is not None
            size = delta.abs().mean()
            delta = trace.vjp(delta.sign() * size, to_input=trace is not traces[0])
        return {"size/stage1": size} if measure else {}
