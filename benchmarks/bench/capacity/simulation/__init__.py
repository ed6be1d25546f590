"""A fleet of replicas, event by event: queues, stragglers, failures and scaling, which no formula covers together."""
