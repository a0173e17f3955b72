"""Tokenizers and chat templates, which come with checkpoints and are not trusted."""

from __future__ import annotations

from pathlib import Path

import pytest

from model_repo.runtime.errors import BadInput
from model_repo.runtime.tokenizer import Tokenizer
from tests.runtime.tiny_tokenizer import END, byte_level, tiny_tokenizer

MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
TEMPLATE = """{% for message in messages %}
<{{ message.role }}>{{ message['content'] }}
{% endfor %}
{% if add_generation_prompt %}<assistant>{% endif %}"""


def test_text_goes_to_tokens_and_back() -> None:
    tokenizer = tiny_tokenizer()
    assert tokenizer.decode(tokenizer.encode("the lazy dog 🙂")) == "the lazy dog 🙂"
    assert tokenizer.vocab_size == byte_level().get_vocab_size()
    assert tokenizer.decode(tokenizer.encode(f"a{END}b")) == "ab"


def test_a_folders_tokenizer_comes_with_its_chat_template(tmp_path: Path) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    plain = Tokenizer.load(tmp_path / "tokenizer.json")
    assert plain.encode("the fox") == tiny_tokenizer().encode("the fox")
    with pytest.raises(BadInput, match="no chat template; send the prompt as text_input"):
        plain.render(MESSAGES)
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.render(MESSAGES) == "<user>hi\n<assistant>hello\n<assistant>"


def test_files_that_are_no_tokenizers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no tokenizer at"):
        Tokenizer.load(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text('{"model": 3}', encoding="utf-8")
    with pytest.raises(BadInput, match=r"tokenizer\.json is not a tokenizer"):
        Tokenizer.load(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__base__ }}",
        "{{ raise_exception.__globals__['jinja2'] }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ (messages | attr('__class__')).__name__ }}",
        "{{ messages.append({'role': 'x'}) }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_template_that_reaches_out_of_its_sandbox_is_refused(template: str) -> None:
    with pytest.raises(BadInput, match="the chat template refuses these messages"):
        tiny_tokenizer(template).render(MESSAGES)


@pytest.mark.parametrize(
    "template",
    [
        "{% for %}",
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[0].content.nothing.at_all }}",
    ],
)
def test_a_template_that_fails_names_the_reason(template: str) -> None:
    with pytest.raises(BadInput, match=r"refuses these messages: ."):
        tiny_tokenizer(template).render(MESSAGES)


@pytest.mark.parametrize("template", ["{{ 1 / 0 }}", "{{ messages[0].content + 3 }}", "{{ none.x() }}"])
def test_a_template_with_a_python_error_is_refused_too(template: str) -> None:
    with pytest.raises(BadInput, match=r"refuses these messages: ."):
        tiny_tokenizer(template).render(MESSAGES)


def test_templates_have_the_helpers_that_transformers_gives_them() -> None:
    template = "{{ messages[0] | tojson }}{{ strftime_now('%Y') | length }}"
    text = Tokenizer(tiny_tokenizer(), template).render([{"role": "user", "content": "<é>"}])
    assert text == '{"role": "user", "content": "<é>"}4'
