"""Instruction data made by a teacher: LLaVA's three kinds from captions and boxes, and Self-Instruct."""
