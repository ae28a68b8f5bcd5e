//! Commands about dumps and replicas do what they say, in any order, any number of times.
