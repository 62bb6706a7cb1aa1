"""Weight files, read by their headers alone: safetensors and GGUF, and what precision their bytes have."""
