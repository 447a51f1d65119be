"""A teacher: a text model behind one interface, be it an OpenAI-compatible endpoint, a local model or a rule.

`Asker` asks it many things at once: cached on the disk, tried again, within a budget of tokens.
"""

from flamingo_lite.teacher.asking import Asker, Failure, Request
from flamingo_lite.teacher.messages import Answer, Message, Picture, Rule, Sampling, Teacher, TryAgain
from flamingo_lite.teacher.settings import TEACHERS, TeacherOptions, make_asker, make_teacher

__all__ = [
    "TEACHERS",
    "Answer",
    "Asker",
    "Failure",
    "Message",
    "Picture",
    "Request",
    "Rule",
    "Sampling",
    "Teacher",
    "TeacherOptions",
    "TryAgain",
    "make_asker",
    "make_teacher",
]
