"""Prompts and steps of generation as command buffers of bounded time."""

from __future__ import annotations

from pathlib import Path

from metal_sim.session import Record, Simulation
from oxibonsai import metal
from oxibonsai.model import Model, Session

MODEL = Path(metal.__file__).resolve().parent.parent / "data" / "alice-q1_0.gguf"
PROMPT = "Alice was beginning to get very tired of sitting by her sister on the bank"


def records_of(sim: Simulation, session: Session, tokens: list[int]) -> list[Record]:
    sim.forget_records()
    session.forward(tokens, logits=None)
    return sim.records()


def teach(sim: Simulation, session: Session, prompt: list[int], seconds: float) -> None:
    """Let a thread take so long, and the driver know it from dry runs."""
    sim.set_dry(1)
    for shift in range(9, -1, -3):
        sim.set_cost(None, seconds / 2**shift)
        for _ in range(2):
            session.forward(prompt, logits=None)
            session.forward(prompt[:1], logits=None)
            session.rewind(0)
    sim.set_dry(0)


def the_text_after_a_prompt_in_pieces_is_that_after_a_whole_one(sim: Simulation) -> None:
    """A step of generation takes 0.12 s here, and a chunk of 16 tokens 0.28 s."""
    sim.set_cost(None, 1e-12)
    with (
        metal.Device("metal") as device,
        Model.load(MODEL, device) as model,
        model.session(chunk=16) as session,
    ):
        prompt = list(model.tokenizer.encode(PROMPT))[:16]
        assert len(prompt) == 16
        assert len(records_of(sim, session, prompt)) == 1
        expected = list(session.generate(6))
        session.rewind(0)
        teach(sim, session, prompt, 5.6e-7)
        sim.set_budget(0.25)
        pieces = records_of(sim, session, prompt)
        assert sum(r.seconds for r in pieces) > 0.25, "as one it would be ended"
        assert len(pieces) >= 3
        sim.forget_records()
        assert list(session.generate(6)) == expected
        # The first choice is made from the logits that the prompt left.
        choice, *steps = sim.records()
        assert choice.seconds < 0.01 * steps[0].seconds
        assert len(steps) == 6
        assert len({r.dispatches for r in steps}) == 1
        assert all(0.1 < r.seconds < 0.15 for r in steps)
