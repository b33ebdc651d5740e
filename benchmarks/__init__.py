"""Speed and memory against transformers and PEFT, measured side by side: see RESULTS.md."""
