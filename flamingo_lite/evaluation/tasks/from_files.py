"""All tasks that read files of a user, in the formats in which they are published."""

from flamingo_lite.evaluation.tasks.clevr_math import CLEVR_MATH
from flamingo_lite.evaluation.tasks.gqa import GQA
from flamingo_lite.evaluation.tasks.hateful_memes import HATEFUL_MEMES
from flamingo_lite.evaluation.tasks.image_folders import IMAGE_FOLDERS
from flamingo_lite.evaluation.tasks.karpathy import COCO_CAPTIONS, FLICKR30K_CAPTIONS
from flamingo_lite.evaluation.tasks.mathverse import MATHVERSE
from flamingo_lite.evaluation.tasks.mathvista import MATHVISTA
from flamingo_lite.evaluation.tasks.ocrbench import OCRBENCH
from flamingo_lite.evaluation.tasks.pope import POPE
from flamingo_lite.evaluation.tasks.science_qa import SCIENCE_QA
from flamingo_lite.evaluation.tasks.task import Task
from flamingo_lite.evaluation.tasks.textvqa import TEXT_VQA
from flamingo_lite.evaluation.tasks.vizwiz import VIZWIZ
from flamingo_lite.evaluation.tasks.vl_icl import VL_ICL
from flamingo_lite.evaluation.tasks.vqa_v2 import OK_VQA, VQA_V2

FROM_FILES: tuple[Task, ...] = (
    *VL_ICL, MATHVISTA, MATHVERSE, CLEVR_MATH, VQA_V2, OK_VQA, TEXT_VQA, VIZWIZ, GQA, COCO_CAPTIONS,
    FLICKR30K_CAPTIONS, SCIENCE_QA, POPE, HATEFUL_MEMES, OCRBENCH, IMAGE_FOLDERS,
)  # fmt: skip
