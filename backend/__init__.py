"""CAV-SAM as a machine learning backend of Label Studio.

Someone who knows Label Studio finds its words here: `app` answers its calls, `label_config` reads its control tags,
`references` chooses the annotation to learn from, `regions` turns masks into its regions and back, `label_studio`
talks to its API. `service` ties them together, `ledger` remembers, `execution` holds the model in its own process.
"""
