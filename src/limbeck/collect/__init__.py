"""From prompts to answers: what is asked, of whom, and what came back."""
