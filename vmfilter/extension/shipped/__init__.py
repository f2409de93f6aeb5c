"""Extensions that come with vmfilter: `--extension NAME` runs one. docs/extensions.md says what they do."""
