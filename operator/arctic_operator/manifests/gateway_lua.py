"""What HAProxy can't say in its configuration: who has a key, which requests a canary gets, which ones wait for a
service that is scaled to zero, and whether it has only just begun.

Files that may change are read anew each second,
so nothing restarts, and no open request is touched, when they do.
"""

LUA_FILE = "gateway.lua"
LUA = """\
-- The file with the digests of accepted keys, a line each.
local keys_path = os.getenv("ARCTIC_KEYS")
-- The file with the percentage of requests that the canary gets.
local canary_path = os.getenv("ARCTIC_CANARY")
-- The file with the number of requests that may wait while there is no leader, and the seconds that each may.
local hold_path = os.getenv("ARCTIC_HOLD")
local hold_seconds = tonumber(os.getenv("ARCTIC_HOLD_SECONDS"))
local began, begin_seconds = os.time(), tonumber(os.getenv("ARCTIC_BEGIN_SECONDS"))
local accepted, share, most_held = {}, 0, 0
-- By each request that waits, when it will have looked for a leader again: one whose client has gone never does.
local held, latest_id = {}, 0

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

local function read_number(path)
    local file = io.open(path)
    local number = file and tonumber(file:read("l")) or 0
    if file then file:close() end
    return number
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
    share, most_held = read_number(canary_path), read_number(hold_path)
end

local function now()
    local moment = core.now()
    return moment.sec + moment.usec / 1e6
end

local function count_held()
    local count, moment = 0, now()
    for id, until_when in pairs(held) do
        if until_when < moment then held[id] = nil else count = count + 1 end
    end
    return count
end

local function has_leader(txn)
    return (txn.f:nbsrv("leaders") or 0) + (txn.f:nbsrv("canary") or 0) > 0
end

local function hold(txn)
    if count_held() >= most_held then
        txn:set_var("txn.unheld", "full")
        return
    end
    latest_id = latest_id + 1
    local id, deadline = latest_id, now() + hold_seconds
    while not has_leader(txn) do
        if now() >= deadline then
            held[id] = nil
            txn:set_var("txn.unheld", "late")
            return
        end
        held[id] = now() + 1
        core.msleep(100)
    end
    held[id] = nil
    txn:set_var("txn.held", "yes")
end

-- Requests that wait for a leader to be there, or to have room.
local function count_waiting()
    local count = count_held()
    for _, name in ipairs({ "leaders", "canary" }) do
        local backend = core.backends[name]
        count = count + (backend:get_stats().qcur or 0)
        for _, server in pairs(backend.servers) do count = count + (server:get_stats().qcur or 0) end
    end
    return count
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
core.register_fetches("begins", function() return os.time() - began < begin_seconds end)
core.register_fetches("has_key", function(txn)
    local digest = txn:get_var("txn.key_digest")
    return digest ~= nil and is_known(digest)
end)
core.register_action("hold", { "http-req" }, hold)
core.register_service("waiting", "http", function(applet)
    local body = string.format('{"waiting": %d}\\n', count_waiting())
    applet:set_status(200)
    applet:add_header("Content-Type", "application/json")
    applet:add_header("Content-Length", tostring(#body))
    applet:start_response()
    applet:send(body)
end)
"""
