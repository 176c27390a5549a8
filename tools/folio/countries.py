"""The table behind the fact questions: the member states of the United Nations and Vatican City."""

from typing import NamedTuple


class Country(NamedTuple):
    """One row of the table; `zh_name` and `zh_capital` are empty where no Chinese text is written."""

    name: str
    capital: str
    continent: str
    language: str
    currency: str
    zh_name: str = ""
    zh_capital: str = ""

    @property
    def with_article(self) -> str:
        """The name as it stands inside a sentence: "the Netherlands", "France"."""
        return f"the {self.name}" if self.name in _TAKE_ARTICLE else self.name


_TAKE_ARTICLE = frozenset(
    {
        "Netherlands",
        "Philippines",
        "United States",
        "United Kingdom",
        "United Arab Emirates",
        "Czech Republic",
        "Dominican Republic",
        "Central African Republic",
        "Democratic Republic of the Congo",
        "Republic of the Congo",
        "Maldives",
        "Bahamas",
        "Solomon Islands",
        "Marshall Islands",
        "Comoros",
        "Seychelles",
        "Gambia",
    }
)

_TABLE = """
France|Paris|Europe|French|euro|法国|巴黎
Germany|Berlin|Europe|German|euro|德国|柏林
Italy|Rome|Europe|Italian|euro|意大利|罗马
Spain|Madrid|Europe|Spanish|euro|西班牙|马德里
Portugal|Lisbon|Europe|Portuguese|euro|葡萄牙|里斯本
United Kingdom|London|Europe|English|pound|英国|伦敦
Ireland|Dublin|Europe|English|euro|爱尔兰|都柏林
Netherlands|Amsterdam|Europe|Dutch|euro|荷兰|阿姆斯特丹
Belgium|Brussels|Europe|Dutch|euro|比利时|布鲁塞尔
Luxembourg|Luxembourg City|Europe|Luxembourgish|euro
Switzerland|Bern|Europe|German|franc|瑞士|伯尔尼
Austria|Vienna|Europe|German|euro|奥地利|维也纳
Liechtenstein|Vaduz|Europe|German|franc
Monaco|Monaco|Europe|French|euro
Andorra|Andorra la Vella|Europe|Catalan|euro
San Marino|San Marino|Europe|Italian|euro
Vatican City|Vatican City|Europe|Italian|euro
Malta|Valletta|Europe|Maltese|euro
Greece|Athens|Europe|Greek|euro|希腊|雅典
Cyprus|Nicosia|Europe|Greek|euro
Denmark|Copenhagen|Europe|Danish|krone|丹麦|哥本哈根
Norway|Oslo|Europe|Norwegian|krone|挪威|奥斯陆
Sweden|Stockholm|Europe|Swedish|krona|瑞典|斯德哥尔摩
Finland|Helsinki|Europe|Finnish|euro|芬兰|赫尔辛基
Iceland|Reykjavik|Europe|Icelandic|krona|冰岛|雷克雅未克
Estonia|Tallinn|Europe|Estonian|euro
Latvia|Riga|Europe|Latvian|euro
Lithuania|Vilnius|Europe|Lithuanian|euro
Poland|Warsaw|Europe|Polish|zloty|波兰|华沙
Czech Republic|Prague|Europe|Czech|koruna|捷克|布拉格
Slovakia|Bratislava|Europe|Slovak|euro
Hungary|Budapest|Europe|Hungarian|forint|匈牙利|布达佩斯
Slovenia|Ljubljana|Europe|Slovene|euro
Croatia|Zagreb|Europe|Croatian|euro
Bosnia and Herzegovina|Sarajevo|Europe|Bosnian|mark
Serbia|Belgrade|Europe|Serbian|dinar|塞尔维亚|贝尔格莱德
Montenegro|Podgorica|Europe|Montenegrin|euro
North Macedonia|Skopje|Europe|Macedonian|denar
Albania|Tirana|Europe|Albanian|lek
Bulgaria|Sofia|Europe|Bulgarian|euro
Romania|Bucharest|Europe|Romanian|leu|罗马尼亚|布加勒斯特
Moldova|Chisinau|Europe|Romanian|leu
Ukraine|Kyiv|Europe|Ukrainian|hryvnia|乌克兰|基辅
Belarus|Minsk|Europe|Belarusian|ruble
Russia|Moscow|Europe|Russian|ruble|俄罗斯|莫斯科
Turkey|Ankara|Asia|Turkish|lira|土耳其|安卡拉
Georgia|Tbilisi|Asia|Georgian|lari
Armenia|Yerevan|Asia|Armenian|dram
Azerbaijan|Baku|Asia|Azerbaijani|manat
China|Beijing|Asia|Chinese|yuan|中国|北京
Japan|Tokyo|Asia|Japanese|yen|日本|东京
South Korea|Seoul|Asia|Korean|won|韩国|首尔
North Korea|Pyongyang|Asia|Korean|won|朝鲜|平壤
Mongolia|Ulaanbaatar|Asia|Mongolian|tugrik|蒙古|乌兰巴托
India|New Delhi|Asia|Hindi|rupee|印度|新德里
Pakistan|Islamabad|Asia|Urdu|rupee|巴基斯坦|伊斯兰堡
Bangladesh|Dhaka|Asia|Bengali|taka
Sri Lanka|Sri Jayawardenepura Kotte|Asia|Sinhala|rupee
Nepal|Kathmandu|Asia|Nepali|rupee|尼泊尔|加德满都
Bhutan|Thimphu|Asia|Dzongkha|ngultrum
Maldives|Male|Asia|Dhivehi|rufiyaa
Afghanistan|Kabul|Asia|Pashto|afghani|阿富汗|喀布尔
Iran|Tehran|Asia|Persian|rial|伊朗|德黑兰
Iraq|Baghdad|Asia|Arabic|dinar|伊拉克|巴格达
Syria|Damascus|Asia|Arabic|pound|叙利亚|大马士革
Lebanon|Beirut|Asia|Arabic|pound
Israel|Jerusalem|Asia|Hebrew|shekel
Jordan|Amman|Asia|Arabic|dinar
Saudi Arabia|Riyadh|Asia|Arabic|riyal|沙特阿拉伯|利雅得
Yemen|Sanaa|Asia|Arabic|rial
Oman|Muscat|Asia|Arabic|rial
United Arab Emirates|Abu Dhabi|Asia|Arabic|dirham|阿联酋|阿布扎比
Qatar|Doha|Asia|Arabic|riyal|卡塔尔|多哈
Bahrain|Manama|Asia|Arabic|dinar
Kuwait|Kuwait City|Asia|Arabic|dinar
Kazakhstan|Astana|Asia|Kazakh|tenge|哈萨克斯坦|阿斯塔纳
Uzbekistan|Tashkent|Asia|Uzbek|som
Turkmenistan|Ashgabat|Asia|Turkmen|manat
Kyrgyzstan|Bishkek|Asia|Kyrgyz|som
Tajikistan|Dushanbe|Asia|Tajik|somoni
Thailand|Bangkok|Asia|Thai|baht|泰国|曼谷
Vietnam|Hanoi|Asia|Vietnamese|dong|越南|河内
Laos|Vientiane|Asia|Lao|kip|老挝|万象
Cambodia|Phnom Penh|Asia|Khmer|riel|柬埔寨|金边
Myanmar|Naypyidaw|Asia|Burmese|kyat|缅甸|内比都
Malaysia|Kuala Lumpur|Asia|Malay|ringgit|马来西亚|吉隆坡
Singapore|Singapore|Asia|English|dollar|新加坡|新加坡
Brunei|Bandar Seri Begawan|Asia|Malay|dollar
Indonesia|Jakarta|Asia|Indonesian|rupiah|印度尼西亚|雅加达
Philippines|Manila|Asia|Filipino|peso|菲律宾|马尼拉
East Timor|Dili|Asia|Tetum|dollar
Egypt|Cairo|Africa|Arabic|pound|埃及|开罗
Libya|Tripoli|Africa|Arabic|dinar
Tunisia|Tunis|Africa|Arabic|dinar
Algeria|Algiers|Africa|Arabic|dinar|阿尔及利亚|阿尔及尔
Morocco|Rabat|Africa|Arabic|dirham|摩洛哥|拉巴特
Mauritania|Nouakchott|Africa|Arabic|ouguiya
Mali|Bamako|Africa|French|franc
Niger|Niamey|Africa|French|franc
Chad|N'Djamena|Africa|French|franc
Sudan|Khartoum|Africa|Arabic|pound|苏丹|喀土穆
South Sudan|Juba|Africa|English|pound
Ethiopia|Addis Ababa|Africa|Amharic|birr|埃塞俄比亚|亚的斯亚贝巴
Eritrea|Asmara|Africa|Tigrinya|nakfa
Djibouti|Djibouti|Africa|French|franc
Somalia|Mogadishu|Africa|Somali|shilling
Kenya|Nairobi|Africa|Swahili|shilling|肯尼亚|内罗毕
Uganda|Kampala|Africa|English|shilling
Tanzania|Dodoma|Africa|Swahili|shilling
Rwanda|Kigali|Africa|Kinyarwanda|franc
Burundi|Gitega|Africa|Kirundi|franc
Democratic Republic of the Congo|Kinshasa|Africa|French|franc
Republic of the Congo|Brazzaville|Africa|French|franc
Central African Republic|Bangui|Africa|French|franc
Cameroon|Yaounde|Africa|French|franc
Gabon|Libreville|Africa|French|franc
Equatorial Guinea|Malabo|Africa|Spanish|franc
Nigeria|Abuja|Africa|English|naira|尼日利亚|阿布贾
Benin|Porto-Novo|Africa|French|franc
Togo|Lome|Africa|French|franc
Ghana|Accra|Africa|English|cedi|加纳|阿克拉
Ivory Coast|Yamoussoukro|Africa|French|franc
Burkina Faso|Ouagadougou|Africa|French|franc
Liberia|Monrovia|Africa|English|dollar
Sierra Leone|Freetown|Africa|English|leone
Guinea|Conakry|Africa|French|franc
Guinea-Bissau|Bissau|Africa|Portuguese|franc
Senegal|Dakar|Africa|French|franc|塞内加尔|达喀尔
Gambia|Banjul|Africa|English|dalasi
Cape Verde|Praia|Africa|Portuguese|escudo
Angola|Luanda|Africa|Portuguese|kwanza
Zambia|Lusaka|Africa|English|kwacha
Malawi|Lilongwe|Africa|English|kwacha
Mozambique|Maputo|Africa|Portuguese|metical
Zimbabwe|Harare|Africa|English|dollar
Botswana|Gaborone|Africa|English|pula
Namibia|Windhoek|Africa|English|dollar
South Africa|Pretoria|Africa|English|rand|南非|比勒陀利亚
Lesotho|Maseru|Africa|Sesotho|loti
Eswatini|Mbabane|Africa|Swazi|lilangeni
Madagascar|Antananarivo|Africa|Malagasy|ariary
Mauritius|Port Louis|Africa|English|rupee
Seychelles|Victoria|Africa|English|rupee
Comoros|Moroni|Africa|Comorian|franc
Sao Tome and Principe|Sao Tome|Africa|Portuguese|dobra
United States|Washington, D.C.|North America|English|dollar|美国|华盛顿
Canada|Ottawa|North America|English|dollar|加拿大|渥太华
Mexico|Mexico City|North America|Spanish|peso|墨西哥|墨西哥城
Guatemala|Guatemala City|North America|Spanish|quetzal
Belize|Belmopan|North America|English|dollar
Honduras|Tegucigalpa|North America|Spanish|lempira
El Salvador|San Salvador|North America|Spanish|dollar
Nicaragua|Managua|North America|Spanish|cordoba
Costa Rica|San Jose|North America|Spanish|colon
Panama|Panama City|North America|Spanish|balboa|巴拿马|巴拿马城
Cuba|Havana|North America|Spanish|peso|古巴|哈瓦那
Jamaica|Kingston|North America|English|dollar
Haiti|Port-au-Prince|North America|Haitian Creole|gourde
Dominican Republic|Santo Domingo|North America|Spanish|peso
Bahamas|Nassau|North America|English|dollar
Barbados|Bridgetown|North America|English|dollar
Trinidad and Tobago|Port of Spain|North America|English|dollar
Grenada|Saint George's|North America|English|dollar
Saint Lucia|Castries|North America|English|dollar
Saint Vincent and the Grenadines|Kingstown|North America|English|dollar
Dominica|Roseau|North America|English|dollar
Antigua and Barbuda|Saint John's|North America|English|dollar
Saint Kitts and Nevis|Basseterre|North America|English|dollar
Brazil|Brasilia|South America|Portuguese|real|巴西|巴西利亚
Argentina|Buenos Aires|South America|Spanish|peso|阿根廷|布宜诺斯艾利斯
Chile|Santiago|South America|Spanish|peso|智利|圣地亚哥
Uruguay|Montevideo|South America|Spanish|peso|乌拉圭|蒙得维的亚
Paraguay|Asuncion|South America|Spanish|guarani
Bolivia|Sucre|South America|Spanish|boliviano
Peru|Lima|South America|Spanish|sol|秘鲁|利马
Ecuador|Quito|South America|Spanish|dollar
Colombia|Bogota|South America|Spanish|peso|哥伦比亚|波哥大
Venezuela|Caracas|South America|Spanish|bolivar|委内瑞拉|加拉加斯
Guyana|Georgetown|South America|English|dollar
Suriname|Paramaribo|South America|Dutch|dollar
Australia|Canberra|Oceania|English|dollar|澳大利亚|堪培拉
New Zealand|Wellington|Oceania|English|dollar|新西兰|惠灵顿
Papua New Guinea|Port Moresby|Oceania|English|kina
Fiji|Suva|Oceania|English|dollar
Solomon Islands|Honiara|Oceania|English|dollar
Vanuatu|Port Vila|Oceania|Bislama|vatu
Samoa|Apia|Oceania|Samoan|tala
Tonga|Nuku'alofa|Oceania|Tongan|pa'anga
Tuvalu|Funafuti|Oceania|Tuvaluan|dollar
Kiribati|Tarawa|Oceania|Gilbertese|dollar
Nauru|Yaren|Oceania|Nauruan|dollar
Palau|Ngerulmud|Oceania|Palauan|dollar
Marshall Islands|Majuro|Oceania|Marshallese|dollar
Micronesia|Palikir|Oceania|English|dollar
"""

COUNTRIES: tuple[Country, ...] = tuple(Country(*row.split("|")) for row in _TABLE.strip().splitlines())
BY_NAME: dict[str, Country] = {country.name: country for country in COUNTRIES}
WITH_CHINESE: tuple[Country, ...] = tuple(country for country in COUNTRIES if country.zh_name)

# Other names that people type; the answer uses the name of the table.
ALIASES: dict[str, tuple[str, ...]] = {
    "United States": ("the USA", "the US", "the United States of America", "America"),
    "United Kingdom": ("the UK", "Great Britain"),
    "United Arab Emirates": ("the UAE",),
    "Netherlands": ("Holland", "Netherlands"),
    "Czech Republic": ("Czechia",),
    "Myanmar": ("Burma",),
    "Turkey": ("Türkiye",),
    "Ivory Coast": ("Côte d'Ivoire",),
    "East Timor": ("Timor-Leste",),
    "Cape Verde": ("Cabo Verde",),
}
