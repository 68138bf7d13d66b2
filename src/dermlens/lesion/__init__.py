"""What is measured on skin lesions: zones, traits, shortcuts, photographs of one lesion."""
