"""Chat templates (jinja) as their models' tokenizers publish them; and what projects without one write, as texts."""

LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'system' %}"
    "{{ '<<SYS>>\\n' + content.strip() + '\\n<</SYS>>\\n\\n' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
"""meta-llama/Llama-2-7b-chat-hf, without its default system message, which was switched off."""

LLAMA_3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
"""meta-llama/Meta-Llama-3-8B-Instruct."""

CHATML = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""transformers' documentation; teknium/OpenHermes-2.5-Mistral-7B."""

GEMMA = (
    "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}"
    "{%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}{%- set loop_messages = messages[1:] -%}"
    "{%- else -%}{%- set first_user_prefix = '' -%}{%- set loop_messages = messages -%}{%- endif -%}"
    "{%- for message in loop_messages -%}{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{%- endif -%}"
    "{%- if (message['role'] == 'assistant') -%}{%- set role = 'model' -%}"
    "{%- else -%}{%- set role = message['role'] -%}{%- endif -%}"
    "{{ '<start_of_turn>' + role + '\\n' + (first_user_prefix if loop.first else '') }}"
    "{{ message['content'] | trim }}{{ '<end_of_turn>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{'<start_of_turn>model\\n'}}{%- endif -%}"
)
"""google/gemma-3-4b-it, its branches for contents that are texts."""

VICUNA_V1 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{{ messages[0]['content'] + ' ' }}{% else %}{% set loop_messages = messages %}{% endif %}"
    "{% for message in loop_messages %}{% if message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""The rule of FastChat's and LLaVA's vicuna_v1 (two separators, a blank and the end token); neither publishes jinja."""

REFERENCES = {"llama2": LLAMA_2, "llama3": LLAMA_3, "chatml": CHATML, "gemma": GEMMA, "v1": VICUNA_V1}

SYSTEM, Q1, A1, Q2, A2 = "Be brief.", "What is it?", "A cat,\n  naïve.", "Sure?", "Yes 👍"
CONVERSATION = [
    {"role": "system", "content": SYSTEM},
    {"role": "user", "content": Q1},
    {"role": "assistant", "content": A1},
    {"role": "user", "content": Q2},
    {"role": "assistant", "content": A2},
]

TEXTS = {
    # LLaVA's conversation.py: separators "###" and "\n", get_prompt of SeparatorStyle.SINGLE and PLAIN.
    "v0": f"<s>{SYSTEM}###Human: {Q1}###Assistant: {A1}###Human: {Q2}###Assistant: {A2}###",
    "plain": f"<s>{A1}\n{A2}\n",
    # Stanford Alpaca's prompt without input, its end token behind the answer, and turns as FastChat's alpaca has them.
    "alpaca": f"<s>{SYSTEM}\n\n### Instruction:\n{Q1}\n\n### Response:{A1}</s>"
    f"### Instruction:\n{Q2}\n\n### Response:{A2}</s>",
    # Otter's mimicit_dataset.py; a system message is ours.
    "otter": f"<s>{SYSTEM} User: {Q1} GPT:<answer> {A1}<|endofchunk|>User: {Q2} GPT:<answer> {A2}<|endofchunk|>",
}
