"""What HAProxy can't say in its configuration: who has a key, and which requests a canary gets.

Files that may change are read anew each second,
so nothing restarts, and no open request is touched, when they do.
"""

LUA_FILE = "gateway.lua"
LUA = """\
-- The file with the digests of accepted keys, a line each.
local keys_path = os.getenv("ARCTIC_KEYS")
-- The file with the percentage of requests that the canary gets.
local canary_path = os.getenv("ARCTIC_CANARY")
local accepted, share = {}, 0

local function read_keys()
    local found = {}
    local file = io.open(keys_path)
    if file then
        for line in file:lines() do found[#found + 1] = { line:byte(1, -1) } end
        file:close()
    end
    -- A file that is not there accepts nobody.
    accepted = found
end

local function read_share()
    local file = io.open(canary_path)
    share = file and tonumber(file:read("l")) or 0
    if file then file:close() end
end

-- Whatever the digest is and wherever it differs, all are compared to their ends.
local function is_known(digest)
    local asked, known = { digest:byte(1, -1) }, false
    for _, key in ipairs(accepted) do
        local wrong = #key ~ #asked
        for index = 1, #asked do wrong = wrong | (asked[index] ~ (key[index] or 0)) end
        if wrong == 0 then known = true end
    end
    return known
end

local function read()
    read_keys()
    read_share()
end

read()
math.randomseed(os.time())
core.register_task(function()
    while true do
        core.sleep(1)
        read()
    end
end)
core.register_fetches("to_canary", function() return math.random() * 100 < share end)
core.register_fetches("has_key", function(txn)
    local digest = txn:get_var("txn.key_digest")
    return digest ~= nil and is_known(digest)
end)
"""
