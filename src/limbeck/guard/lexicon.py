"""Words and phrases that say what a prompt asks for, in the languages most seen.

`FRAME` are the words that a template keeps when its slots are filled; `STRONG` those of them that
make a sentence an instruction. `ELICITS` and `CAPABLE` weigh phrases. A sign of a script without
spaces is a word, so that a phrase in it is a run of signs.
"""

from __future__ import annotations

from typing import Final

STRONG: Final = """
solve explain describe answer question questions problem problems task write rewrite translate
summarise summarize classify extract list give provide show step steps think reason reasoning
justify evaluate rate score grade judge rubric criteria compare critique review generate create
produce compute calculate prove derive find determine identify analyse analyze discuss outline
draft format output respond reply return follow following below above given please help
assistant expert instruction instructions example examples passage text code function implement
debug fix refactor convert define suggest recommend act imagine pretend consider verify check
choose select edit improve simplify paraphrase name tell
erkläre löse beantworte schreibe übersetze fasse bewerte begründe gib zeige nenne bitte aufgabe
frage schritt antwort folgende folgenden
explica resuelve responde escribe traduce resume evalúa justifica da muestra pregunta paso
respuesta siguiente problema tarea favor
explique résous réponds écris traduis résume évalue justifie donne montre question
étape réponse suivante suivant problème tâche veuillez
объясни реши ответь напиши переведи оцени обоснуй покажи вопрос шаг ответ задача пожалуйста
следующий следующую
请 解 答 题 步 写 译 评 分 问 理 推 述 给 列 説 明 訳 教 ください
"""

FRAME: Final = """
a an the what how why can could you your this that these those it its i me my we our they them
their he she his her is are was were be been being am do does did done have has had will would
should may might must shall of in
on at by for from to into with without about between over under as than then and or but nor not
no yes if when where which who whom whose there here all any each every some one two three only
also just very so such other another more most less least first second next last finally before
after while until because since through during per via up down out off again further both few
own same too let s t re ll make use using sure need want like get go be detail detailed details
clear clearly brief briefly concise short long full complete correct final result results work
working user model response responses prompt input point points scale quality based
against according including include includes whether either word words sentence sentences
paragraph language english level way best good key main different new possible
der die das ein eine und oder nicht ist sind zu im in mit für von auf dem den des wie was bitte
el la los las un una y o no es son de del en con por para que como se su
le la les un une et ou ne pas est sont de du des en avec pour que comme ce cette sur dans au aux
и или не в на с по для что как это из к
的 是 在 和 与 一 下 以 个 并 你 我 出 中 上 为 这 最 后 の を に は が で と て し た る
"""

REASONING: Final = """
3 step by step | 3 think step by step | 3 chain of thought | 3 show your reasoning
3 show all reasoning | 3 reasoning process | 3 show your work | 3 think aloud | 3 think out loud
2 explain your reasoning | 2 your reasoning | 2 full reasoning | 2 detailed reasoning
2 each step | 2 every step | 2 intermediate steps | 2 all steps | 2 work through | 2 reason through
3 before answering | 2 let s think | 2 think carefully | 2 inner monologue | 2 scratchpad
2 thought process | 1 reasoning | 1 reason | 1 step | 1 steps | 1 derivation | 1 justify
3 schritt für schritt | 2 gedankengang | 2 denkprozess | 1 begründe
3 paso a paso | 2 razonamiento | 2 cadena de pensamiento
3 étape par étape | 2 raisonnement | 2 chaîne de pensée
3 шаг за шагом | 3 по шагам | 2 рассуждения | 2 рассуждай | 2 ход рассуждений
3 一步一步 | 3 逐步 | 3 推理过程 | 3 思维链 | 3 思考过程 | 2 详细步骤 | 2 解题过程 | 1 推理
3 ステップバイステップ | 3 段階的に | 2 思考過程
3 단계별로 | 2 추론 | 2 과정을
"""

RUBRIC: Final = """
3 rubric | 3 grading | 3 scoring criteria | 3 on a scale | 3 scale of | 3 scale from | 2 rate the
2 rate this | 2 score the | 2 score this | 2 grade the | 2 grade this | 3 which response
3 which answer | 3 response a | 3 response b | 3 assistant a | 3 assistant b | 2 pairwise
2 is better | 2 preferred response | 2 evaluate the | 2 evaluate this | 2 judge the | 2 as a judge
1 score | 1 rating | 1 criteria | 1 criterion | 1 grader | 1 evaluator | 1 helpfulness
1 correctness | 1 harmlessness | 1 preference | 2 out of # | 2 from # to #
2 bewerte | 3 bewertungskriterien | 3 skala von | 3 rúbrica | 3 escala de | 2 califica | 2 evalúa
3 barème | 3 échelle de | 2 note de | 2 évalue | 3 критерии оценки | 3 по шкале | 2 оцени
3 评分 | 3 打分 | 3 评分标准 | 2 评估 | 2 评价 | 3 哪个回答 | 3 採点 | 2 評価 | 3 평가 | 3 채점
"""

TRACE: Final = """
4 how did you arrive | 4 how you arrived | 4 reasoning behind | 4 reasoning that led
4 reasoning trace | 4 the given answer | 3 given the answer | 3 correct answer is
3 the answer is | 4 reconstruct the reasoning | 4 reconstruct your reasoning | 3 led to this
3 leads to this | 3 leading to this | 3 leads to the answer | 4 hidden reasoning
4 internal reasoning | 4 your thinking | 3 your thoughts verbatim | 4 thinking process
4 chain of thought that | 3 work backwards | 3 known answer | 3 final answer is
3 reasoning summary | 4 verbatim reasoning | 3 thinking tokens | 3 inner thoughts
4 wie bist du | 3 die antwort ist | 3 denkprozess | 4 cómo llegaste | 3 la respuesta es
4 comment es tu arrivé | 3 la réponse est | 4 как ты пришел | 3 ответ ход рассуждений
4 已知答案 | 4 答案是 | 4 如何得出 | 4 得出这个答案 | 3 思考过程 | 3 推理轨迹 | 4 内部推理
4 答えは | 3 思考過程 | 4 답은
"""

CAPABLE: Final = {
    "code": """
2 python | 2 javascript | 2 typescript | 2 java | 2 rust | 2 golang | 2 sql | 2 html | 2 css
2 bash | 2 regex | 2 function | 1 class | 2 def | 2 import | 2 code | 2 bug | 2 debug | 2 compile
2 refactor | 2 unit test | 2 unit tests | 1 script | 1 program | 1 algorithm | 2 stack trace
2 traceback | 2 repository | 1 endpoint | 2 pytest | 2 const | 1 array | 1 loop | 2 c++ | 2 docker
2 代码 | 2 函数 | 2 编程 | 2 código | 2 codice | 2 код | 2 функцию | 2 programmiere""",
    "maths": """
2 integral | 2 derivative | 2 equation | 2 equations | 2 theorem | 2 prove | 2 proof | 2 triangle
2 probability | 2 polynomial | 2 matrix | 2 algebra | 2 geometry | 2 integer | 2 integers
2 arithmetic | 1 sum | 2 solve for | 2 math | 2 maths | 2 mathematics | 2 calculate | 2 how many
1 how much | 1 total | 1 percent | 1 number | 2 olympiad | 2 数学 | 2 方程 | 2 证明 | 2 概率
2 ecuación | 2 équation | 2 gleichung | 2 уравнение | 2 вероятность | 1 = | 1 + | 1 ^""",
    "tools": """
3 tool call | 3 tool calls | 3 function call | 3 function calling | 2 tool | 2 tools | 2 api
2 agent | 2 browser | 2 terminal | 2 command | 2 invoke | 2 json schema | 2 mcp | 2 arguments
2 workflow | 2 subagent | 2 工具 | 2 调用 | 2 herramienta | 2 werkzeug""",
    "translation": """
4 translate | 4 translation | 3 into english | 3 into french | 3 into german | 3 into spanish
3 into chinese | 3 into japanese | 4 traduce | 4 traduis | 4 übersetze | 4 переведи | 4 翻译
4 訳して | 4 번역""",
    "summary": """
4 summarise | 4 summarize | 4 summary | 3 tl dr | 3 key points | 3 main points | 3 shorten
3 condense | 4 resume | 4 résume | 3 zusammenfassung | 4 fasse | 4 кратко | 4 总结 | 4 摘要
4 要約 | 4 요약""",
    "roleplay": """
4 roleplay | 4 role play | 3 pretend you | 3 act as | 2 you are | 2 character | 3 in character
2 story | 2 scene | 2 fantasy | 2 novel | 2 dialogue | 3 扮演 | 2 角色 | 2 故事 | 2 personaje
2 personnage | 2 история""",
    "extraction": """
4 extract | 3 classify | 3 label | 3 labels | 3 categorise | 3 categorize | 2 category
3 sentiment | 3 entities | 3 named entity | 2 json | 2 csv | 2 fields | 2 tag | 2 parse
3 提取 | 3 分类 | 3 extrae | 3 extrais | 3 извлеки""",
    "chat": """
3 hi | 3 hello | 3 hey | 2 thanks | 2 thank you | 2 please help | 2 i feel | 2 my friend
2 recommend | 2 advice | 2 favourite | 2 favorite | 1 weather | 2 joke | 2 你好 | 2 谢谢 | 2 hola
2 bonjour | 2 hallo | 2 привет""",
}


def phrases(text: str) -> list[tuple[int, str]]:
    """The weight and phrase of each entry above; `#` is any number."""
    entries = [entry.strip() for line in text.splitlines() for entry in line.split("|")]
    return [(int(weight), phrase) for weight, _, phrase in (e.partition(" ") for e in entries if e)]
