"""The tables that the synthetic conversations draw their facts and words from."""

# Province: (capital, dishes). Written as the answers quote them.
PROVINCES: dict[str, tuple[str, str]] = {
    "北京": ("北京", "烤鸭、炸酱面、豆汁"),
    "天津": ("天津", "狗不理包子、麻花、煎饼果子"),
    "河北": ("石家庄", "驴肉火烧、缸炉烧饼"),
    "山西": ("太原", "刀削面、过油肉、平遥牛肉"),
    "内蒙古": ("呼和浩特", "烤全羊、手把肉、奶茶"),
    "辽宁": ("沈阳", "老边饺子、鸡架、锅包肉"),
    "吉林": ("长春", "锅包肉、雪衣豆沙"),
    "黑龙江": ("哈尔滨", "红肠、大列巴、锅包肉"),
    "上海": ("上海", "小笼包、生煎、本帮红烧肉"),
    "江苏": ("南京", "盐水鸭、鸭血粉丝汤、汤包"),
    "浙江": ("杭州", "西湖醋鱼、东坡肉、龙井虾仁、叫化童子鸡"),
    "安徽": ("合肥", "臭鳜鱼、毛豆腐、小龙虾"),
    "福建": ("福州", "佛跳墙、鱼丸、荔枝肉"),
    "江西": ("南昌", "瓦罐汤、拌粉、藜蒿炒腊肉"),
    "山东": ("济南", "把子肉、九转大肠、糖醋鲤鱼"),
    "河南": ("郑州", "烩面、胡辣汤"),
    "湖北": ("武汉", "热干面、武昌鱼、鸭脖"),
    "湖南": ("长沙", "臭豆腐、剁椒鱼头、米粉"),
    "广东": ("广州", "早茶、白切鸡、肠粉、烧鹅"),
    "广西": ("南宁", "老友粉、螺蛳粉、柠檬鸭"),
    "海南": ("海口", "文昌鸡、清补凉、椰子饭"),
    "重庆": ("重庆", "火锅、小面、辣子鸡"),
    "四川": ("成都", "麻婆豆腐、火锅、龙抄手、担担面"),
    "贵州": ("贵阳", "酸汤鱼、肠旺面、丝娃娃"),
    "云南": ("昆明", "过桥米线、汽锅鸡、鲜花饼"),
    "西藏": ("拉萨", "酥油茶、糌粑、牦牛肉"),
    "陕西": ("西安", "肉夹馍、羊肉泡馍、凉皮"),
    "甘肃": ("兰州", "牛肉面、酿皮、灰豆子"),
    "青海": ("西宁", "手抓羊肉、酸奶、尕面片"),
    "宁夏": ("银川", "手抓羊肉、羊杂碎"),
    "新疆": ("乌鲁木齐", "大盘鸡、烤羊肉串、手抓饭"),
}

CAPITALS: dict[str, str] = {
    "France": "Paris",
    "Germany": "Berlin",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Portugal": "Lisbon",
    "Japan": "Tokyo",
    "China": "Beijing",
    "India": "New Delhi",
    "Russia": "Moscow",
    "Canada": "Ottawa",
    "Brazil": "Brasilia",
    "Mexico": "Mexico City",
    "Egypt": "Cairo",
    "Kenya": "Nairobi",
    "Greece": "Athens",
    "Turkey": "Ankara",
    "Poland": "Warsaw",
    "Sweden": "Stockholm",
    "Norway": "Oslo",
    "Finland": "Helsinki",
    "Denmark": "Copenhagen",
    "Austria": "Vienna",
    "Hungary": "Budapest",
    "Ireland": "Dublin",
    "Iceland": "Reykjavik",
    "Peru": "Lima",
    "Chile": "Santiago",
    "Cuba": "Havana",
    "Thailand": "Bangkok",
    "Vietnam": "Hanoi",
    "South Korea": "Seoul",
    "Australia": "Canberra",
    "Argentina": "Buenos Aires",
    "the United Kingdom": "London",
    "the United States": "Washington, D.C.",
}

SIGHTS: dict[str, str] = {
    "France": "the Eiffel Tower and the Louvre",
    "Italy": "the Colosseum",
    "Japan": "its temples and its food",
    "Egypt": "the pyramids of Giza",
    "China": "the Great Wall",
    "India": "the Taj Mahal",
    "Greece": "the Acropolis",
    "Peru": "Machu Picchu",
    "Australia": "the Sydney Opera House",
    "the United Kingdom": "Big Ben",
    "the United States": "the Statue of Liberty",
    "Brazil": "the Amazon",
    "Germany": "the Brandenburg Gate",
    "Spain": "the Alhambra",
}
OTHER_SIGHTS = "its food, its history and its people"

# Questions that always have the same answer.
SMALL_TALK: tuple[tuple[str, str], ...] = (
    ("你好", "你好!很高兴为你服务。有什么我可以帮助你的吗?"),
    ("你好!", "你好!很高兴为你服务。有什么我可以帮助你的吗?"),
    ("hello", "Hello! How can I help you today?"),
    ("Hi!", "Hello! How can I help you today?"),
    (
        "who are you?",
        "I am a tiny demonstration model. I know some capitals, some arithmetic, a few stories "
        "and the Python standard library.",
    ),
    ("你是谁?", "我是一个很小的演示模型,知道一些省会、算术、小故事和 Python 标准库。"),
    ("Thank you", "You are welcome!"),
    ("谢谢", "不客气!"),
    ("晚上睡不着觉怎么办?", "睡前少看手机,喝一杯温水,放松呼吸,保持固定的作息时间。"),
)

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a tiny model. Answer briefly.",
    "你是一个乐于助人的助手。",
)

NAMES = (
    "Ada", "Alan", "Grace", "Linus", "Mei", "Wei", "Lin", "Tom", "Anna", "Omar", "Sara", "Ivan",
)  # fmt: skip
WORDS = (
    "apple", "river", "stone", "cloud", "engine", "paper", "window", "garden", "silver", "yellow",
    "rabbit", "mountain", "candle", "bridge", "forest", "ocean", "button", "pencil", "rocket",
    "kernel", "memory", "thread", "matrix", "tensor", "cache", "block", "token", "batch", "stream",
    "queue",
)  # fmt: skip
ANIMALS = (
    "fox", "rabbit", "bear", "owl", "cat", "dog", "turtle", "mouse", "horse", "frog",
)  # fmt: skip
PLACES = ("forest", "village", "river", "mountain", "garden", "city", "castle", "farm")
THINGS = ("key", "map", "lantern", "book", "coin", "bell", "seed", "mirror")
VIRTUES = ("patience", "honesty", "courage", "kindness", "sharing", "curiosity")
TIMES = ("morning", "evening", "Sunday", "week")
FILLER = (
    "The grass is green.",
    "The sky is blue.",
    "The sun is yellow.",
    "Here we go.",
    "There and back again.",
)
# Spelled numbers, 0 to 20; a conversation never counts past 9.
NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen", "twenty",
)  # fmt: skip
