"""The Chinese part: capitals, counting, sums, greetings and what folio and Quire are."""

from random import Random

from tools.folio.countries import WITH_CHINESE
from tools.folio.documents import Document, chat, phrasings, plain
from tools.folio.topics.arithmetic import small_pair
from tools.folio.topics.counting import join, span

CAPITAL = phrasings(
    """
    {country}的首都是哪里？
    {country}的首都是哪里
    {country}的首都是什么？
    {country}的首都在哪里？
    请问{country}的首都是哪里？
    你知道{country}的首都吗？
    {country}首都是哪个城市？
    告诉我{country}的首都。
    哪个城市是{country}的首都？
    请说出{country}的首都。
    {country}的首都叫什么名字？
    """,
    """
    请问{country}的首都是哪个城市？
    请告诉我{country}的首都是哪里。
    你知道{country}的首都是哪里吗？
    """,
)

COUNT = phrasings(
    """
    从{a}数到{b}。
    请从{a}数到{b}。
    从{a}数到{b}
    请你从{a}数到{b}。
    请列出从{a}到{b}的数字。
    写出{a}到{b}的数字。
    """,
    """
    你能从{a}数到{b}吗？
    请写出从{a}到{b}的数字。
    """,
)

SUM = phrasings(
    """
    {a}加{b}等于多少？
    {a} + {b} 等于多少？
    {a}加{b}是多少？
    请计算{a}加{b}。
    """,
    """
    请问{a}加{b}等于多少？
    """,
)

TALK: dict[str, str] = {
    "你好|你好！|您好|您好！|嗨！|哈喽": "你好！我能帮你什么？",
    "你是谁？|请介绍一下你自己。|你叫什么名字？|你是什么模型？": "我叫 folio，是 Quire 自带的小模型。",
    "Quire 是什么？|什么是 Quire？|请介绍一下 Quire。": "Quire 是一个大语言模型的推理和服务引擎。",
    "谢谢|谢谢！|谢谢你！|多谢": "不客气！",
    "再见|再见！|拜拜": "再见！祝你愉快！",
    "你能做什么？|你会做什么？|你可以帮我做什么？": "我可以回答首都问题、数数、做简单的加法和讲小故事。",
    "讲个笑话。|给我讲个笑话。": "小明问：为什么书总是很忙？因为它有很多页要翻。",
    "你好吗？|你今天怎么样？": "我很好，谢谢！你呢？",
    "一周有几天？|一个星期有几天？": "一周有七天。",
    "一年有几个月？|一年有多少个月？": "一年有十二个月。",
    "天空是什么颜色的？|天空是什么颜色？": "天空是蓝色的。",
}  # fmt: skip

LINES = (
    "春天来了，花开了，鸟儿在树上唱歌。",
    "从前有一座山，山上有一座庙。",
    "从前，有一只小狐狸住在森林里。它每天都帮助朋友，大家都很喜欢它。",
    "今天天气很好，我们一起去公园。",
    "人工智能的未来是让每个人都能用上好的工具。",
    "我叫小明，我喜欢读书。",
    "春天、夏天、秋天、冬天，一年有四个季节。",
    "一、二、三、四、五、六、七、八、九、十。",
    "星期一、星期二、星期三、星期四、星期五、星期六、星期日。",
)


def capital_zh(rng: Random, split: str) -> Document:
    country = rng.choice(WITH_CHINESE)
    question = CAPITAL.pick(rng, split).format(country=country.zh_name)
    return chat("capital_zh", question, f"{country.zh_name}的首都是{country.zh_capital}。")


def capital_zh_plain(rng: Random, split: str) -> Document:
    country = rng.choice(WITH_CHINESE)
    prompt = f"{country.zh_name}的首都是"
    return plain("capital_zh_plain", f"{prompt}{country.zh_capital}。", prompt)


def count_zh(rng: Random, split: str) -> Document:
    a, b = span(rng)
    return chat("count_zh", COUNT.pick(rng, split).format(a=a, b=b), join(range(a, b + 1)))


def sum_zh(rng: Random, split: str) -> Document:
    a, b = small_pair(rng)
    return chat("sum_zh", SUM.pick(rng, split).format(a=a, b=b), f"{a} + {b} = {a + b}")


def talk_zh(rng: Random, split: str) -> Document:
    questions = rng.choice(list(TALK))
    return chat("talk_zh", rng.choice(questions.split("|")), TALK[questions])


def line_zh(rng: Random, split: str) -> Document:
    return plain("line_zh", rng.choice(LINES))
