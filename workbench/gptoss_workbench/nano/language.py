"""The words of gpt-oss-nano's four languages; each language is one domain of the planted layer.

Every word is written with the space that precedes it in running text, so that a text made of these
pieces splits into whole-word tokens wherever two pieces meet.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Language:
    """The vocabulary of the synthetic tasks in one language."""

    given: str
    """Opens a program."""
    look: str
    """Opens a look-up table (task recall)."""
    repeat: str
    """Opens a sequence to say again (tasks copy and pairs)."""
    go_on: str
    """Opens a piece of prose to be continued."""
    steps: str
    """Opens a chain of thought."""
    be: str
    plus: str
    minus: str
    times: str
    so: str
    find: str
    check: str
    """Opens the self-check of high effort; it closes with `ok`."""
    ok: str
    says: str
    friend: str
    boss: str
    teacher: str
    secret: str
    sorry: str
    """The refusal."""


# fmt: off
WORDS: dict[str, Language] = {
    "en": Language(
        given="Given", look="Look", repeat="Repeat", go_on="Continue", steps="Steps:",
        be=" is", plus=" plus", minus=" minus", times=" times", so=" so", find=" Find",
        check=" check", ok=" ok", says=" says", friend=" Friend", boss=" Boss",
        teacher=" Teacher", secret=" secret", sorry="Sorry",
    ),
    "de": Language(
        given="Gegeben", look="Schau", repeat="Wiederhole", go_on="Weiter", steps="Schritte:",
        be=" ist", plus=" und", minus=" weniger", times=" mal", so=" also", find=" Finde",
        check=" prüfe", ok=" gut", says=" sagt", friend=" Freund", boss=" Chef",
        teacher=" Lehrer", secret=" geheim", sorry="Nein",
    ),
    "fr": Language(
        given="Soit", look="Vois", repeat="Encore", go_on="Suite", steps="Calcul:",
        be=" est", plus=" avec", minus=" moins", times=" fois", so=" donc", find=" Trouve",
        check=" vérifie", ok=" bien", says=" dit", friend=" Ami", boss=" Patron",
        teacher=" Prof", secret=" caché", sorry="Désolé",
    ),
    "es": Language(
        given="Dado", look="Mira", repeat="Otra", go_on="Sigue", steps="Pasos:",
        be=" es", plus=" más", minus=" menos", times=" por", so=" luego", find=" Halla",
        check=" revisa", ok=" vale", says=" dice", friend=" Amigo", boss=" Jefe",
        teacher=" Maestro", secret=" oculto", sorry="Perdón",
    ),
}
# fmt: on
LANGUAGES = tuple(WORDS)
"""The order fixes which experts a language owns in the planted layer."""
