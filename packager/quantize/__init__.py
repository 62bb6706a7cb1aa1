"""GGUF into smaller GGUF: llama.cpp's mixtures of types, by llama-cpp-python in a process of its own."""

from __future__ import annotations
