//! What decides: the store, the node agent, controllers and the publisher.
