//! Joins registry, layer and volume: plan, admission, pipeline.
