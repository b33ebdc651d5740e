from plumbing.checkpoint.folder import LLAMA3_ROPE, Config
