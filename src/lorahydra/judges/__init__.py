"""LLM judges: one protocol, one prompt, one way of asking; services differ only in their own file.

`get_model_by_id("gemini")` gives a judge with the shipped settings, `load_session(config)` what a trial uses.
"""

from lorahydra.judges.asking import JudgeCall
from lorahydra.judges.base import Fault, Judge, JudgeCase, JudgeFault, JudgePrompt, JudgeReply, Verdict
from lorahydra.judges.judgement import Judgement
from lorahydra.judges.loading import get_model_by_id, load_session, make_judge, make_session, ready_session
from lorahydra.judges.selftest import SelfTest, self_test
from lorahydra.judges.session import JudgeSession, SingleSession
from lorahydra.judges.starting import start_judging

__all__ = [
    "Fault",
    "Judge",
    "JudgeCall",
    "JudgeCase",
    "JudgeFault",
    "JudgePrompt",
    "JudgeReply",
    "JudgeSession",
    "Judgement",
    "SelfTest",
    "SingleSession",
    "Verdict",
    "get_model_by_id",
    "load_session",
    "make_judge",
    "make_session",
    "ready_session",
    "self_test",
    "start_judging",
]
