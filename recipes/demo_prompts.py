"""Write the demo's prompts: short everyday requests that a small chat model answers well.

Every task has as many prompts, and the first n rows hold all tasks evenly. Run as
`python recipes/demo_prompts.py [--out FILE]`; the output is the same on every machine.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

PER_TASK = 48

# A paragraph for each task: its name ~ its wordings ~ its items, parted by bars.
TASKS = """
chat ~ {} ~
Hello! How are you today? | Hi there, what can you do for me? | Good morning! | Who are you? | Can
you help me with some writing? | Thanks, that was very useful. | Do you speak English? | I have had
a long day. | Good evening, I would like to chat a little. | What is your job? | I am feeling
nervous about tomorrow. | Can you tell me a short joke? | What do you like to talk about? | Hey, are
you a person or a program? | I just got a new puppy! | It is raining again here. | I passed my exam
today! | Could you cheer me up? | I cannot sleep. What should I do? | Say hello to my class,
please. | What is a good way to start a conversation? | Goodbye, see you later! | I am bored. Any
ideas? | Tell me something nice. | What questions can I ask you? | My friend moved away and I miss
her. | I baked bread for the first time today. | Are you ready to help? | How should I say thank you
to a neighbour? | Nice to meet you. | I lost my keys this morning. | It is my birthday today! | I
start a new job on Monday. | Can you explain things to a child? | Happy New Year! | Do you ever get
tired? | My tea has gone cold. | I would like to learn to cook. | Please introduce yourself in two
sentences. | What makes you smile? | I forgot my umbrella and got wet. | How do I ask you a good
question? | I finished reading my first long novel. | Can you keep it short, please? | Welcome back!
Did you miss me? | My cat is ignoring me. | I am planning a quiet weekend. | What is one thing you
are good at?

polite ~ Rewrite this politely: {} | Make this sound kinder: {} | Say it more politely: {} | How
could I put this nicely? {} | Say the same in a friendlier way: {} ~
Give me the report now. | Stop talking so loudly. | Move your car. | You are late again. | I want a
refund. | Send me the photos today. | Close the window. | Don't touch my desk. | Answer my email. |
Your music is too loud. | Bring me some water. | Tell me your name. | You made a mistake in my
bill. | Get out of the way. | I don't like this idea. | Fix the printer. | Be quiet, I am working. |
Call me back. | You forgot my order. | Wait outside. | Turn off the light. | This soup is cold, take
it back. | Hurry up, we are waiting. | Explain that again. | I need your answer by Friday. | Don't
park here. | Show me the way to the station. | Clean the kitchen when you are done. | Let me finish
my sentence. | Change my appointment. | No, I can't come to your party. | Lend me your pen. | Give
the book back. | Take off your shoes. | You are sitting in my seat. | Stop sending me adverts. |
Check your spelling. | Help me carry this box. | Keep your dog off the grass. | Pay me what you owe
me. | Speak more slowly. | Sign this form. | Leave the parcel with my neighbour. | Don't call after
nine. | Your text is far too long. | Print ten copies for me. | I won't do your work for you. | Hold
the door.

simplify ~ Say this in simpler words: {} | Make this easier to read: {} | Put it plainly: {} |
Rewrite for a ten-year-old: {} | What does this mean in plain English? {} ~
The meeting was postponed owing to inclement weather. | We regret the inconvenience caused by the
delay. | Kindly refrain from consuming food in the library. | The physician prescribed rest and
ample fluids. | She endeavoured to complete the assignment promptly. | The vehicle collided with a
stationary fence. | Patrons are requested to extinguish all lights upon departure. | He was
reluctant to disclose his age. | The garment shrank considerably after laundering. | Our premises
will remain closed on public holidays. | The committee reached a unanimous decision. | Passengers
must retain their tickets throughout the journey. | The instructions were exceedingly difficult to
comprehend. | They reside in close proximity to the harbour. | The child was apprehensive about the
dental appointment. | Please ascertain whether the shop is open. | The concert commenced at seven
and terminated at nine. | He purchased an adequate quantity of flour. | Numerous residents expressed
dissatisfaction with the noise. | The soil requires frequent irrigation in summer. | Employees are
obliged to notify the manager of any absence. | The elderly gentleman perambulated slowly. | It is
imperative that you submit the form by noon. | The majority of the apples were consumed. | Her
explanation was concise and comprehensible. | The bakery anticipates high demand this weekend. | We
were unable to locate the missing document. | The museum prohibits flash photography. | The
remainder of the cake was distributed among the guests. | He demonstrated considerable patience. |
The temperature will decrease significantly overnight. | Swimming is forbidden in the absence of a
lifeguard. | She inquired about the cost of the accommodation. | The team was victorious in the
final match. | The lecture was tedious and of excessive length. | Kindly remit payment within thirty
days. | The road is temporarily inaccessible due to maintenance. | He possesses a substantial
collection of stamps. | The gift was gratefully received by the recipient. | Visitors should proceed
to the nearest exit. | The puppy exhibited signs of fatigue after the walk. | An alternative route
was selected by the driver. | The recipe necessitates three ripe bananas. | The lake was concealed
by dense fog. | Our neighbours are constructing a wooden shed. | The letter arrived subsequent to
her departure. | The pupils were commended for their diligence. | Retain this receipt for future
reference.

summarise ~ Summarise in one sentence: {} | Put this into one sentence: {} | In short, please: {} |
What is the main point? {} | Shorten this: {} ~
The bus broke down on the hill. Everyone had to walk the last mile to school. | Nina planted
tomatoes in spring. By August she had more than she could eat. | The bakery opens at six. By eight
the warm rolls are usually gone. | Our neighbour plays the piano every evening. We leave the window
open to listen. | It snowed all night. The trains were cancelled in the morning. | The library got
new chairs. Readers now stay longer than before. | Tom forgot his lunch at home. His friends each
gave him a bit of theirs. | The old bridge was closed for repairs. Drivers must take the road along
the river. | Grandma knits a scarf for every child. This year she made eleven. | The film was two
hours late. Half of the audience had gone home. | The cat hid under the bed during the storm. It
came out when the thunder stopped. | Bees visit many flowers each day. They carry pollen from one to
the next. | The market sells fish on Fridays. People come early to get the best. | Our team lost the
first three games. Then a new coach came and we won the cup. | Leo wanted a dog for years. On his
tenth birthday he was given one. | The lamp flickered and went out. A new bulb did not help. | We
hiked to the lake at dawn. The view was worth the early start. | The shop sells used bicycles. It
also repairs them for free on Saturdays. | Ella practised her speech in front of the mirror. On the
day she was not nervous at all. | The river rose after the rain. The fields along it are now under
water. | Sleep helps the body to recover. It also helps us to remember what we learnt. | The museum
has a new room about ships. Children may climb into a real boat there. | Dad burnt the pancakes. We
had toast and jam instead. | The village has no cinema. Once a month films are shown in the barn. |
Plants need light to grow. Those by the window do better than those in the corner. | The heating
failed on Monday. The office sent everyone home until it was repaired. | Mia lost her ring on the
beach. A stranger found it and brought it back. | The new road saves ten minutes. But it is noisy
for those who live beside it. | The choir meets on Tuesdays. New singers are welcome and need no
experience. | The ferry runs once an hour. In winter it stops at five. | Otters hold hands when they
sleep. So they do not drift apart. | The hotel was full. The owner let us sleep in the attic. | Sam
walks to work every day. He says it clears his head. | The recipe needs three eggs. We had only one,
so we made half of it. | The school garden is run by pupils. They sell the vegetables at the summer
fair. | The clock in the hall is always slow. Visitors often miss their train because of it. | A fox
comes to our garden at night. It eats the apples that fall from the tree. | The phone was cheap and
simple. It lasted longer than any other I have had. | Water expands when it freezes. That is why
full bottles crack in the freezer. | The guide spoke very softly. Those at the back could not hear a
word. | The storm took the roof off the barn. Neighbours helped to build a new one in a week. |
Clara learnt to swim at sixty. Now she swims in the sea every morning. | The café has no menu. The
cook makes what the market has that day. | Owls hunt in the dark. They find their prey mostly by
ear. | We painted the kitchen yellow. Even grey mornings feel sunny now. | The town planted trees
along the main street. In summer it is much cooler there. | The boys built a raft of barrels. It
sank after two minutes. | The letter was posted in May. It reached me in October.

list ~ Name three {}. | List three {}. | Can you give me three {}? | I need three {}. | What are
three {}? | Please write down three {}. ~
fruits that grow on trees | things to pack for the beach | animals that can fly | breakfast foods |
colours of the rainbow | ways to say hello | things found in a kitchen | musical instruments |
winter sports | vegetables for a soup | jobs in a hospital | small pets | gifts for a teacher |
things that are round | games for a rainy day | reasons to drink water | items for a picnic | farm
animals | ways to save electricity | drinks without sugar | toppings for pizza | flowers | tools for
the garden | hobbies to do at home | forms of transport | rooms in a house | things you see at
night | sea animals | words that describe the sun | good habits | things to take on a hike | kinds
of weather | parts of a bicycle | things made of wood | ideas for a school project | ways to relax
after work | ingredients for pancakes | insects | birds you may see in a garden | pieces of clothing
for cold days | things children collect | shapes | places to read a book | months with 31 days |
kitchen spices | ball games | things to do in a park | questions to ask a new neighbour

tone ~ Positive or negative? {} | Is this review positive or negative? {} | Does the writer sound
pleased or not? {} | Say if this is positive or negative: {} | What is the tone here, positive or
negative? {} ~
The soup was warm and the staff were kind. | My parcel came two weeks late and broken. | I would
happily come here again. | The room smelled of smoke. | What a lovely little garden! | Nobody
answered my calls. | The lesson was clear and fun. | I want my money back. | The bread was stale and
hard. | Best ice cream in town. | The seats were far too narrow. | Our guide knew everything and
made us laugh. | The app crashes every time I open it. | She was patient with all my questions. |
The film put me to sleep. | The bed was soft and clean. | I waited an hour for a cold coffee. |
These boots kept my feet dry all winter. | The handle fell off on the first day. | A wonderful
evening from start to end. | The instructions make no sense. | The driver was rude to my mother. |
My children love this book. | The paint peeled off within a week. | Thank you for the quick
repair! | The music was so loud that we left. | It works perfectly and looks great. | The tea tastes
like dust. | The view took my breath away. | They charged me twice and never said sorry. | Such a
friendly shop. | I regret buying this chair. | The cake was fresh and not too sweet. | The toy broke
in my son's hands. | Everything was ready on time. | The water was brown and cold. | I felt welcome
at once. | The ending was a big disappointment. | My new lamp gives a beautiful light. | The queue
was endless and nobody cared. | A cosy place with great food. | The jacket lost its colour in the
first wash. | The nurse was gentle and calm. | I will never fly with them again. | The puppy is
healthy and happy. | The sound is thin and full of noise. | Fast, fair and helpful. | The pizza was
burnt on one side.

extract ~ Which person is named here? {} | Which place is named here? {} | Which day or date is
named here? {} | Extract the name: {} | Extract the place: {} | Extract the day or date: {} | What
is the name in this sentence? {} | Name the place in this sentence: {} | Find the day or date: {} ~
Maria met her brother in Lisbon on Friday. | On 3 May, Peter opened a shop in York. | Anna will
visit Oslo on 12 June. | Last Sunday Omar ran a race in Cairo. | The train to Vienna leaves on
Monday, said Julia. | Ben was born in Dublin on 9 April. | Yuki moved from Kyoto in March. | On
Tuesday Rosa sang in a church in Seville. | Our teacher, Mr Brook, goes to Iceland in July. | Lena
sold her boat in Hamburg on Saturday. | On 1 October the market in Leeds was opened by Grace. |
Karim flew to Nairobi on Thursday. | Ivan wrote to his aunt in Prague in December. | The school in
Perth closes on Wednesday, says Ruth. | On 20 August Paolo caught a huge fish near Naples. | Sofia
learnt to ski in Bergen last January. | Hugo starts work at the zoo in Antwerp on 2 February. | Mina
was late for dinner in Delhi on Sunday. | On Friday evening Carl lost his hat in Geneva. | The
concert in Athens on 7 July was led by Helen. | Dora bakes bread in Krakow every Saturday. | In May,
Felix cycled all the way to Ghent. | Amir will return to Lima on 15 November. | On Monday Edith
found a coin on a beach in Cork.

title ~ Write a short title for {}. | Suggest a title for {}. | What would you call {}? | I need a
catchy title for {}. | Find a title of four words for {}. ~
a story about a lost kite | a recipe for apple cake | a poem about the first snow | an article on
walking to work | a tale of a brave mouse | a guide to growing tomatoes | a photo of a quiet lake |
a report on bus delays | a diary about a summer by the sea | a talk on better sleep | a film about
two old friends | a song about coming home | a letter on saving a park | a story of a dragon who
fears fire | a book about bread | a school play set in a forest | an essay on kindness | a painting
of a stormy sea | a blog post on cheap meals | a story about twins who swap places | a class on
first aid | a poem about an empty house | a list of rainy-day games | a story in which a clock
stops | an article about city bees | a speech for a retiring nurse | a show about small trains | a
fairy tale about a clever goose | a report on a school garden | a story about a robot gardener | a
guide for new cat owners | a walk along an old canal | a mystery about a missing cake | a poem about
autumn leaves | a lesson on how rain forms | a story told by a street lamp | an essay about learning
to swim | a cookbook for students | a story about a night train | a newsletter for a choir | a film
about a lighthouse keeper | an article on mending clothes | a bedtime story about the moon | a day
at the fire station | a song about strong coffee | a story about a postman and a dog | a workshop on
drawing faces | a tale about a tiny island

opposite ~ What is the opposite of "{}"? | Give me the opposite of {}. | Opposite of {}? | Which
word means the opposite of {}? ~
hot | early | happy | empty | loud | brave | heavy | narrow | begin | always | above | buy | clean |
dark | difficult | enter | fast | generous | high | inside | kind | laugh | modern | near | open |
polite | push | rich | rough | safe | sharp | sick | sweet | tall | thick | up | victory | weak |
wet | win | young | arrive | ancient | cheap | deep | friend | question | remember

synonym ~ Give me another word for "{}". | What is a synonym of {}? | Which word means the same as
{}? | Which word could I use instead of "{}"? ~
big | angry | begin | tired | smart | quick | sad | speak | pretty | funny | help | easy | scared |
shout | small | strange | rest | quiet | gift | build | choose | close | correct | cry | end | fix |
glad | hard | house | idea | jump | journey | large | look | mad | mistake | nice | often | reply |
road | silly | stone | street | task | throw | trip | wealthy | wonderful

question ~ Turn this into a question: {} | Make a question out of this: {} | Rewrite as a question:
{} | How would you ask this? {} ~
She likes green tea. | The shop is open on Sunday. | They live near the river. | He can play the
violin. | The train was late. | You have two sisters. | It will rain tomorrow. | The soup is too
salty. | We should leave now. | Paul has a red bicycle. | The cat sleeps on the sofa. | They won the
match. | The museum closes at five. | You have seen this film. | Birds can see colours. | The baby
is awake. | Nora works in a bakery. | The keys are on the table. | He walked home alone. | There is
milk in the fridge. | The children went to the park. | It was cold last night. | She will call you
back. | The road is closed. | You know the answer. | The lake freezes in winter. | My shoes are
dry. | They speak Spanish at home. | The letter has arrived. | Her father is a pilot. | We need more
eggs. | The dog wants to go out. | He bought a new coat. | The lights are on. | Cows eat grass. |
The meeting starts at ten. | You can swim. | The window was open. | She wrote this poem. | There are
enough chairs. | The cake is ready. | Your brother plays chess. | The bus stops here. | They have a
large garden. | He should see a doctor. | The wind has stopped. | We met at school. | The library is
quiet.

correct ~ Correct this sentence: {} | Fix the grammar: {} | What is the right way to say this? {} |
Please correct my English: {} | Find the mistake and fix it: {} ~
she go to school every day | me and him is friends | I has two cat | they was late for dinner | he
dont like fish | the childs are playing | I seen that film already | we was at home yesterday | her
hair are long | there is three apples here | he runned very fast | I am agree with you | she is more
taller than me | them books are mine | he can sings well | where you are going | I have went to the
shop | this shoes is too small | it rain a lot here | she buyed a new hat | we doesn't have time |
he is good in maths | I didn't saw you | the dog have a bone | you was right about it | he teached
me to swim | its to cold outside | I like they music | she speak english very good | the mens are
working | yesterday I go to the park | he have a idea | there house is blue | I am here since
Monday | a apple fell down | she don't never smile | we eated pizza last night | can you gives me a
pen | my brother he is a cook | I wants to sleep now | how much eggs do we need | the bus arrive at
ten | who's coat is this | she sing more better than him | he comed home late | I need a
informations | they is my cousins | the sun rise in the east

explain ~ What is {}? | Explain {} in one sentence. | How would you explain {} to a child? | Tell me
briefly what {} is. | In a few words, what is {}? ~
a volcano | a library | gravity | a recipe | a vitamin | a thermometer | a proverb | an island | a
budget | a compass | a season | the moon | a calendar | a shadow | a desert | recycling | a
dentist | a magnet | a rainbow | an orchestra | a passport | a bridge | an earthquake | honesty | a
glacier | a nickname | a lighthouse | a battery | a beehive | a diary | an alphabet | a waterfall |
a map | democracy | a fossil | a greenhouse | a hobby | ice | a kettle | a museum | a neighbour | an
orchard | a poem | a queue | a river | a sailor | a telescope | yeast

sentence ~ Use the word "{}" in a sentence. | Write a short sentence with the word {}. | Make up a
sentence that contains {}. | Show me how to use "{}" in a sentence. ~
umbrella | garden | suddenly | bridge | gentle | morning | whisper | bicycle | curious | mountain |
borrow | candle | usually | kitchen | promise | lemon | quietly | window | brave | harbour |
forget | pillow | together | journey | butter | clever | rainbow | listen | shadow | weekend |
carry | velvet | almost | ladder | laughter | market | proud | river | though | feather | slowly |
winter | puzzle | grateful | station | basket | between | echo

choose ~ Which of these is {}? | Pick the one that is {}. | Which is {}? ~
a fruit: a chair, an apple or a lamp | a colour: green, spoon or river | an animal: a bus, a horse
or a hat | something to drink: milk, sand or paper | larger: a mouse or an elephant | a month:
Monday, June or noon | a tool: a hammer, a cloud or a song | hotter: ice or fire | a vegetable: a
carrot, a shoe or a clock | a bird: a sparrow, a trout or an ant | faster: a snail or a train | a
number: seven, blue or table | a day of the week: April, Tuesday or summer | something you wear: a
scarf, a plate or a door | a country: Norway, Monday or bread | heavier: a feather or a brick | a
sport: tennis, butter or rain | a body part: an elbow, a window or a key | sweeter: honey or salt |
an insect: a bee, a goat or a whale | a piece of furniture: a sofa, a pear or a dog | a season:
winter, Friday or lunch | older: a baby or a grandmother | a musical instrument: a drum, a fork or a
boot | something that flies: a kite, a rock or a bath | a metal: iron, wool or cheese | louder: a
whisper or a shout | a job: nurse, onion or pencil | a shape: a circle, a smell or a dream |
something found in the sea: a shark, a camel or a tractor | softer: a pillow or a stone | a flower:
a rose, a nail or a coin | a meal: breakfast, carpet or thunder | a vehicle: a lorry, a leaf or a
spoon | taller: a tree or a mushroom | a language: French, sugar or ladder | something made of
paper: a book, a river or a cow | wetter: a desert or a lake | a kind of weather: fog, a table or a
jacket | a feeling: joy, a bucket or glass | something you read: a newspaper, soup or a bell | a
planet: Mars, a hill or a boat | colder: January or a hot bath | a room: a bedroom, a tiger or a
lemon | a toy: a doll, the sun or a law | longer: an hour or a minute | a tree: an oak, a shirt or a
train | something that gives light: a candle, a sock or a potato

tense ~ Put this into the past tense: {} | Write it in the past: {} | Change to past tense: {} | How
do you say this about yesterday? {} ~
I walk to work. | She bakes a cake. | They play in the garden. | He drinks tea. | We live in a small
flat. | The bird sings. | I write a letter. | You help me a lot. | The shop opens at nine. | He runs
home. | She reads to her son. | They are tired. | I have a cold. | The children sleep. | We go to
the market. | He finds a coin. | It rains all day. | She teaches music. | I buy fresh bread. | The
dog barks at night. | They swim in the lake. | You speak too fast. | The sun shines. | He is my best
friend. | I think of you. | She drives to town. | We eat at seven. | The baby cries. | They build a
shed. | I know her name. | He wears a green hat. | The wind blows. | She loses her keys. | We meet
at noon. | I feel cold. | The boat leaves early. | He sells flowers. | They watch the stars. | You
make good soup. | She gets up late. | I carry the bags. | The lake freezes. | He forgets my
birthday. | We pay the bill. | They come by train. | She keeps a diary. | I stand by the door. | The
film begins at eight.

finish ~ Finish this sentence: {} ... | Complete the sentence: {} ... | How does this go on? {}
... | Add an ending: {} ... ~
On rainy days I like to | The best part of the morning is | When I was a child, I | My favourite
meal is | If I had a boat, I would | The old dog looked up and | After work she always | In the
garden there was | The secret of good bread is | He opened the letter and | Next summer we will | A
true friend is someone who | The train was so late that | Nobody knew why the lamp | Before you go
to bed, | The cake smelled of | I was about to leave when | Every Sunday my family | The moon rose
over | To make her laugh, he | The smallest house in the street | I learnt to swim because | When
the music stopped, | Winter is a good time to | She packed her bag and | A cup of tea helps me to |
The shop on the corner sells | Once there was a king who | The first thing I noticed was | Behind
the door they found | The cat sat by the window and | If you are lost, you should | My grandfather
used to | The best gift I ever got was | At the end of the road | The soup tasted better after |
People smile when | The teacher said that we | It was so cold that | With a little patience you
can | The boy shared his lunch with | Far away in the hills | The hardest part of cooking is | A
good neighbour always | Early in spring the birds | When the lights went out, we | I keep this old
photo because | The ship sailed towards

fact ~ {} ~
How many days are in a week? | What colour is the sky on a clear day? | Which animal says "moo"? |
What do bees make? | How many legs does a spider have? | What is the capital of France? | In which
direction does the sun rise? | What do you call frozen water? | How many months are in a year? |
What is two plus three? | Which is the largest ocean? | What do plants need to grow? | How many
minutes are in an hour? | What is the capital of Italy? | Which season comes after winter? | What do
cows drink? | How many wheels does a bicycle have? | What is the opposite side of left? | Which
planet do we live on? | What is bread made from? | How many letters are in the English alphabet? |
What is a baby dog called? | Which fruit is yellow and curved? | What is the capital of Japan? |
What do we use to write on paper? | How many sides does a triangle have? | What is ten minus four? |
Which bird cannot fly and lives in the cold south? | What do caterpillars turn into? | At what
temperature does water boil? | Which day comes after Thursday? | What is the capital of Spain? |
What do firefighters do? | How many hours are in a day? | What gas do we need to breathe? | What is
cheese made from? | Which animal has a trunk? | What do you wear on your feet? | How many fingers
are on one hand? | What is the first month of the year? | Where do fish live? | Which instrument has
black and white keys? | What is the capital of Germany? | What do we call a very tall hill? | How
many seconds are in a minute? | Which meal do we eat in the morning? | What do you use an umbrella
for? | Why do people wear sunglasses?

message ~ Write a short {}. | Help me with a quick {}. | I need a one-line {}. | Please draft a
brief {}. | Can you write a friendly {}? ~
birthday wish for my aunt | thank-you note for a neighbour | apology for being late | get-well
message for a friend | invitation to a picnic | note to say I am at the shop | welcome message for a
new colleague | reminder to water the plants | goodbye note for a classmate | message to say dinner
is ready | note to welcome a new baby | good-luck message before an exam | note asking for a day
off | thank-you message to a teacher | text to say the bus is late | message asking to borrow a
ladder | wish for a happy wedding | note for the milkman | message to cancel a haircut | invitation
to a board game evening | sorry note to my sister | message to praise a good cook | note asking
neighbours to be quiet | text asking for a phone number | well-done note for a new job | reminder
about a dentist visit | good-morning text to my husband | message to a friend who moved away | offer
to help with the garden | note to say the key is under the mat | thank-you message for a lovely
meal | invitation to a school concert | message to cheer up a tired nurse | note saying that the
lift is broken | wish for a safe journey | message to ask how grandma is | reminder to bring warm
clothes | text to say I am on my way | apology for a noisy party | welcome note for a holiday
guest | message to thank a bus driver | good-night message for a child | note to go with a box of
eggs | text asking what to buy | message to say well done to a runner | invitation to coffee | note
to find the owner of a lost cat | message to wish a team good luck

tip ~ Give me one tip for {}. | What helps with {}? | Any advice on {}? | I need a tip for {}. |
What is your best advice for {}? | Share a simple trick for {}. ~
sleeping better | saving money on food | learning new words | keeping a room tidy | staying calm
before a test | growing herbs at home | making new friends | waking up early | drinking more water |
cooking rice | writing a clear email | remembering names | packing a suitcase | getting to work on
time | cleaning windows | reading more books | speaking in front of people | looking after a cat |
keeping bread fresh | walking in the rain | studying with noise around | cutting onions | staying
warm in winter | using less plastic | cheering up a friend | taking good photos | starting to run |
peeling garlic | saying no politely | keeping plants alive | finding lost keys | making good tea |
planning a week | teaching a child to tie shoes | sharing a small flat | cooling a hot room |
removing a coffee stain | resting your eyes | being a good listener | hosting a dinner | riding a
bicycle in traffic | folding shirts | choosing a ripe melon | learning to draw | sitting less |
ending a phone call | baking soft biscuits | crossing a busy street
"""


def tasks() -> dict[str, list[str]]:
    """The prompts of each task: its items in its wordings, taken in turn, some items twice."""
    found: dict[str, list[str]] = {}
    for paragraph in TASKS.strip().split("\n\n"):
        name, wordings, items = (" ".join(part.split()) for part in paragraph.split("~"))
        ways, contents = wordings.split(" | "), items.split(" | ")
        every = [item for item in contents for _ in range(PER_TASK // len(contents))]
        found[name] = [ways[n % len(ways)].format(item) for n, item in enumerate(every)]
    return found


def rows() -> Iterator[dict[str, str]]:
    """All prompts with their tasks, one of each task in turn."""
    found = tasks()
    for prompts in zip(*found.values(), strict=True):
        for task, prompt in zip(found, prompts, strict=True):
            yield {"prompt": prompt, "task": task}


def main() -> None:
    """Write the file that the command line names."""
    parser = argparse.ArgumentParser(description="Write the demo's prompts.")
    default = Path(__file__).with_name("demo-prompts.jsonl")
    parser.add_argument("--out", type=Path, default=default, metavar="FILE")
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows()]
    parser.parse_args().out.write_text("".join(lines), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
