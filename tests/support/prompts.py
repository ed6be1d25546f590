"""Twenty short prompts of many kinds: languages, code, lists, digits, blank space."""

PROMPTS = (
    "What is the capital of Portugal?",
    "Write a haiku about a lighthouse.",
    "Explain photosynthesis to a child of six.",
    "def fibonacci(n):\n    ",
    "List three uses of a paper clip.",
    "Translate 'good morning' into German, Spanish and Finnish.",
    "17 * 23 =",
    "Dear landlord,\nthe tap in the kitchen",
    "Was macht ein Trimmruder an einem Schiff?",
    "¿Cuál es la diferencia entre un río y un lago?",
    "日本で一番高い山は何ですか。",
    "Once upon a time, in a village without clocks,",
    "SELECT name, COUNT(*) FROM orders",
    "Name a fruit. Answer with one word.",
    "Is it ever right to break a promise? Argue both sides.",
    "    \t  tabs and   spaces   ",
    "😀🚀 what do these two emoji mean together?",
    "Summarise: The meeting was moved from Tuesday to Friday because the room was flooded.",
    "<html><body><ul><li>",
    "a a a a a a a a",
)
