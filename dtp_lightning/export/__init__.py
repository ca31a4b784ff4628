"""Export of trained encoders as safetensors with a JSON card."""
