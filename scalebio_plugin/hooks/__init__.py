"""Hooks of the plugin's own machinery. What an extension needs stands here; it costs no import but pluggy's.

spec      what can be hooked, and the training step drawn once with every hook in its place
defaults  the built-in behaviour, registered like anybody's
manager   builds the pluggy manager of a run

An extension is a module with functions, or a class with methods. It takes of a hook's arguments those that it names:

    # my_rules.py
    from scalebio_plugin.hooks import Observation, hookimpl

    @hookimpl
    def scalebio_update_mixture(rule: str, observation: Observation):
        if rule != "sign":
            return None  # not ours: the next one answers
        return observation.logits_S - observation.learning_rate * observation.gradient_S.sign(), {}  # λ, our state

and in the config `scalebio: {extensions: [my_rules], mixture_update: sign}`, with the module where Python finds it. Or
install it as a package: entry points of the group `scalebio` are registered in every run.
"""

from .spec import Observation, RunFacts, hookimpl

__all__ = ["Observation", "RunFacts", "hookimpl"]
