"""Chat templates to test with: in the manner of published ones, and hostile ones.

The first are written for these tests; each uses the constructs its family's template is known for.
"""

from __future__ import annotations

CHATML_SYSTEM = """\
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set system = 'You are a helpful assistant.' %}
    {%- set rest = messages %}
{%- endif %}
{{- '<|im_start|>system\\n' + system + '<|im_end|>\\n' }}
{%- for message in rest %}
    {%- if message.role not in ['user', 'assistant'] %}
        {{- raise_exception('Unexpected role ' ~ message.role) }}
    {%- endif %}
{{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

LLAMA31 = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'
            + message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {{- '{"name": "' + tool_call.name + '", ' }}
        {{- '"parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}" }}
        {{- "<|eot_id|>" }}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

QWEN3 = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and
        not(message.content.startswith('<tool_response>')
            and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning_content =
                content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n')
                + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}{{- '\\n' }}{%- endif %}
                {%- if tool_call.function %}
                    {%- set tool_call = tool_call.function %}
                {%- endif %}
                {{- '<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' }}
                {%- if tool_call.arguments is string %}
                    {{- tool_call.arguments }}
                {%- else %}
                    {{- tool_call.arguments | tojson }}
                {%- endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

MISTRAL = """\
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace(index=0) %}
{%- for message in loop_messages %}
    {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
        {{- raise_exception("After the optional system message, roles must alternate") }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {% generation %}
        {{- " " + message["content"]|trim + eos_token }}
        {% endgeneration %}
    {%- endif %}
{%- endfor %}
"""
# The generation block above adds blanks of its own; published templates write it on one line.
MISTRAL = MISTRAL.replace("        {% generation %}\n", "{%- generation -%}\n").replace(
    "        {% endgeneration %}\n", "{%- endgeneration -%}\n"
)

GLM = (
    "{% for message in messages %}{{ '<|' ~ message['role'] ~ '|>\\n' ~ message['content'] }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\\n{% endif %}"
)

_DOUBLE = "{% set ns = namespace(x='a') %}{% for i in range(99) %}"
_BIG = "{% set s = 'a' * 900000 %}"

#: Templates that would run for ever, take all memory, or reach what they must not.
HOSTILE = {
    "range": "{% for i in range(10**9) %}x{% endfor %}",
    "range beyond a machine word": "{% for i in range(10**40) %}x{% endfor %}",
    "nested loops": (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    ),
    "loop that drops all": (
        "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}"
    ),
    "continue": (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% continue %}{% endfor %}"
        "{% endfor %}"
    ),
    "repeat text": "{{ 'x' * 10**10 }}",
    "repeat text, turned": "{{ 10**10 * 'x' }}",
    "repeat list": "{{ [1] * 10**10 }}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "squares": "{% set ns = namespace(x=9) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}"
    "{% endfor %}",
    "double by ~": _DOUBLE + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "double by +": _DOUBLE + "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "double by join": _DOUBLE + "{% set ns.x = [ns.x, ns.x]|join %}{% endfor %}",
    "double by format": _DOUBLE + "{% set ns.x = '%s%s' % (ns.x, ns.x) %}{% endfor %}",
    "double by block": _DOUBLE
    + "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
    "double by macro": (
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% else %}x{% endif %}{% endmacro %}"
        "{{ m(60) }}"
    ),
    "laughing list": _DOUBLE + "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "laughing dict": _DOUBLE + "{% set ns.x = {1: ns.x, 2: ns.x} %}{% endfor %}{{ ns.x|tojson }}",
    "laughing dict call": _DOUBLE + "{% set ns.x = dict(a=ns.x, b=ns.x) %}{% endfor %}{{ ns.x }}",
    "laughing tuple": _DOUBLE + "{% set ns.x = (ns.x, ns.x) %}{% endfor %}{{ {ns.x: 1} }}",
    "deep list": _DOUBLE + "{% set ns.x = [[ns.x]] %}{% endfor %}",
    "deep tuple": (
        "{% set ns = namespace(x=(1,)) %}{% for i in range(99999) %}{% set ns.x = (ns.x,) %}"
        "{% endfor %}{{ {ns.x: 1} }}"
    ),
    "laughing views": _DOUBLE + "{% set ns.x = {1: ns.x, 2: ns.x}.items() %}{% endfor %}{{ ns.x }}",
    "laughing varargs": (
        "{% set ns = namespace(x='a') %}{% macro m() %}{% set ns.x = varargs %}{% endmacro %}"
        "{% for i in range(99) %}{% set _ = m(ns.x, ns.x) %}{% endfor %}{{ ns.x }}"
    ),
    "laughing kwargs": (
        "{% set ns = namespace(x='a') %}{% macro m() %}{% set ns.x = kwargs %}{% endmacro %}"
        "{% for i in range(99) %}{% set _ = m(a=ns.x, b=ns.x) %}{% endfor %}{{ ns.x }}"
    ),
    "chain of maps": (
        "{% set ns = namespace(x=[1]) %}{% for i in range(99999) %}"
        "{% set ns.x = ns.x|map('string') %}{% endfor %}{{ ns.x|list }}"
    ),
    "slow comparison": (
        "{% set l = range(99999)|list %}{% for i in l %}{% if -1 in l %}{% endif %}{% endfor %}"
    ),
    "recursive macro": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "recursive loop": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "branching loop": (
        "{% for x in [1, 2] recursive %}{% if loop.depth < 60 %}{{ loop([1, 2]) }}{% endif %}"
        "{% endfor %}"
    ),
    "recursive block": "{% block a %}{{ self.a() }}{% endblock %}",
    "center": "{{ 'a'|center(10**9) }}",
    "center method": "{{ 'a'.center(10**9) }}",
    "zfill": "{{ '1'.zfill(10**9) }}",
    "indent": "{{ 'a\nb'|indent(10**9) }}",
    "indent lines": "{{ ('\n' * 900000)|indent('x' * 1000, true, true) }}",
    "batch": "{{ [1]|batch(10**9, 'x')|list }}",
    "slice": "{{ [1]|slice(10**9)|list }}",
    "percent width": "{{ '%1000000000d' % 1 }}",
    "percent star": "{{ '%*d' % (10**9, 1) }}",
    "percent precision": "{{ '%.1000000000f' % 1.5 }}",
    "format filter width": "{{ '%1000000000d'|format(1) }}",
    "format width": "{{ '{:1000000000}'.format(1) }}",
    "format nested width": "{{ '{:{w}}'.format(1, w=10**9) }}",
    "format map width": "{{ '{a:1000000000}'.format_map({'a': 1}) }}",
    "format many": _BIG + "{{ ('{0}' * 100000).format(s) }}",
    "percent many": _BIG + "{{ ('%(s)s' * 100000)|format(s=s) }}",
    "replace": _BIG + "{{ s|replace('a', s) }}",
    "replace method": _BIG + "{{ s.replace('', s) }}",
    "join": _BIG + "{{ s.join(s) }}",
    "trim": _BIG + "{{ s|trim('b' * 900000 ~ 'a') }}",
    "strip": _BIG + "{{ s.strip('b' * 900000 ~ 'a') }}",
    "rfind": _BIG + "{{ s.rfind('b' ~ 'a' * 450000) }}",
    "sum of lists": "{{ ([[]] * 50000)|sum(start=range(99999)|list)|length }}",
    "map": "{{ range(99999)|map('center', 1000000)|list|length }}",
    "select": "{% set l = range(99999)|list %}{{ l|select('in', l)|list|length }}",
    "linear search": "{% set l = range(99999)|list %}{% for i in l if -1 in l %}{% endfor %}",
    "reverse": _BIG + "{% for i in range(99999) %}{% set x = s[::-1] %}{% endfor %}",
    "split": "{% for i in range(999) %}{% set x = ('a ' * 50000).split(' ') %}{% endfor %}",
    "tojson indent": "{{ [1]|tojson(indent=10**9) }}",
    "tojson often": (
        "{% set l = range(99999)|list %}{% for i in l %}{{ l|tojson|length }}{% endfor %}"
    ),
    "round": "{{ 5|round(-10**9) }}",
    "strftime": "{{ strftime_now('%1000000000d') }}",
    "concat many": _BIG + "{{ (" + "~".join(["s"] * 3000) + ")|length }}",
    "output many": _BIG + "{{ s }}" * 3000,
    "long literal in a loop": "{% for i in range(99999) %}" + "x" * 100_000 + "{% endfor %}",
    "long literal in a macro": (
        "{% macro m() %}" + "x" * 100_000 + "{% endmacro %}"
        "{% for i in range(99999) %}{% set y = m() %}{% endfor %}"
    ),
    "parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "nots": "{{ " + "not " * 20_000 + "1 }}",
    "sums": "{{ " + "1+" * 50_000 + "1 }}",
    "filters": "{{ 1" + "|string" * 15_000 + " }}",
    "ifs": "{% if 1 %}" * 5000 + "{% endif %}" * 5000,
    "elifs": "{% if 0 %}" + "{% elif 0 %}" * 9000 + "{% endif %}",
    "fors": "{% for i in [1] %}" * 50 + "{% endfor %}" * 50,
    "attributes": "{{ a" + ".b" * 50_000 + " }}",
    "too long": "x" * 200_000,
    "too many expressions": "{{ a }}" * 15_000,
    "long number": "{{ " + "9" * 100_000 + " }}",
    "encode": "{{ ('a' * 100000).encode('punycode') }}",
    "to_bytes": "{{ (1).to_bytes(10**9, 'big') }}",
    "class": "{{ ''.__class__.__mro__ }}",
    "globals": "{{ namespace.__init__.__globals__ }}",
    "append": "{% set l = [] %}{{ l.append(l) }}",
    "namespace dunder": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "lipsum": "{{ lipsum(10**9) }}",
    "cycler": "{{ cycler(1).next() }}",
    "undefined": "{{ nope.foo }}",
    "unknown filter": "{{ 1|nofilter }}",
    "unclosed": "{% for x in",
}
#: Those that fail as errors of the template, not at a limit.
REFUSED = ("encode", "to_bytes", "class", "globals", "append", "include", "unknown filter")
